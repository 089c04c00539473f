"""Shapes in activation and behaviour space: arrays in, frozen fits out; no model is known here.

A `Curve` is the line or ring on which activations lie, a `Behavior` that of output distributions.

>>> import math, torch
>>> angle = torch.arange(12) * 2 * math.pi / 12
>>> ring = fit_curve(torch.stack([angle.cos(), angle.sin()], 1), range(12), period=12)
>>> ring
Curve(12 knots, period 12, d_model 2, k 2, 100.0% of variance)
>>> [round(float(u), 2) for u in ring.path(11, 1, 5)]
[11.0, 11.5, 12.0, 12.5, 13.0]
"""

from manifolds.behavior.energy import Isometry as Isometry
from manifolds.behavior.energy import energy as energy
from manifolds.behavior.energy import isometry as isometry
from manifolds.behavior.manifold import Behavior as Behavior
from manifolds.behavior.manifold import fit_behavior as fit_behavior
from manifolds.behavior.simplex import bhattacharyya as bhattacharyya
from manifolds.behavior.simplex import exp_map as exp_map
from manifolds.behavior.simplex import fisher_rao as fisher_rao
from manifolds.behavior.simplex import hellinger as hellinger
from manifolds.behavior.simplex import log_map as log_map
from manifolds.curve import Curve as Curve
from manifolds.errors import ManifoldError as ManifoldError
from manifolds.fit import fit_curve as fit_curve
from manifolds.plots import draw_curve as draw_curve
from manifolds.plots import plot_curve as plot_curve
from manifolds.subspace import Subspace as Subspace
from manifolds.subspace import fit_pca as fit_pca
