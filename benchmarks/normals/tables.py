"""What the pictures of `beliefs_gaussian` are drawn from."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.normals.numbers import Measured, share
from benchmarks.normals.reading import MEAN, MEANS, SIGMA, SIGMAS
from benchmarks.normals.steering import ARMS
from benchmarks.normals.switching import BEFORE, START


def tables_of(m: Measured) -> dict[str, Any]:
    """Return what the pictures are drawn from."""
    curve, knots = m.shapes.curve, m.shapes.curve.knots
    along = torch.linspace(float(knots[0]), float(knots[-1]), 61)
    space = curve.subspace
    return {
        "means": list(MEANS),
        "sigmas": list(SIGMAS),
        "laws": {"sigma": SIGMA, "mean": MEAN},
        "missed": _rounded(m.missed),
        "plane": {
            arm: {
                "mean": _rounded(m.steered.mean(arm).mean(0)),
                "spread": _rounded(m.steered.spread(arm).mean(0)),
            }
            for arm in (*ARMS, "mixture")
        },
        "natural_curve": {
            "mean": _rounded(m.steered.natural_mean),
            "spread": _rounded(m.steered.natural_spread),
        },
        "lfp": {
            name: _rounded(values.mean(1))
            for name, values in (
                ("mean", m.mean_fields.accuracy),
                ("spread", m.spread_fields.accuracy),
            )
        },
        "r2": {
            "mean": [share(x, m.means.u) for x in m.mean_encoded],
            "spread": [share(x, m.spreads.u) for x in m.spread_encoded],
        },
        "curve": [_rounded(x) for x in space.coordinates(curve.decode(along))[:, :3]],
        "knots": [_rounded(x) for x in space.coordinates(curve.decode(knots))[:, :3]],
        "switch": {
            "before": BEFORE,
            "first": START,
            "off": _rounded(m.switched.off.mean(0)),
            "off_steady": _rounded(m.switched.off_steady.mean(0)),
            "mean": _rounded(m.switched.mean.mean(0)),
            "spread": _rounded(m.switched.spread.mean(0)),
            "observers": {k: _rounded(v.mean(0)) for k, v in m.switched.observers.items()},
            "off_plane": _rounded(m.plane.off.mean(0)),
            "off_plane_wide": _rounded(m.plane.wide.mean(0)),
        },
        "direction_of_lowest_pair": _rounded(m.mean_fields.local[m.block]),
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(float(v), 4) for v in values]
