"""Probes: read-outs of activations. Arrays in, frozen fits out; no model is known here.

A fit takes x of [sample, d], or [site, sample, d] to fit every site at once, and returns a
`LinearProbe`: `scores(x)` reads, `direction` (unit norm, towards the positive class) steers,
`origin` says where the activations came from, `diagnostics` has the held-out score.

    probe = probes.fit_logistic(acts[site], labels, origin=acts.origin(site))
    probe.scores(x)                        # probabilities
    steer.Add(site, probe.direction, 4.0)

Contrast sets: `fit_mean_difference` (CAA), `fit_pca_difference` (LAT); without labels
`fit_consistent`. Labels: `fit_logistic`, `fit_lda`; ordered ones `fit_ordinal`; `fit_mlp` for what
no linear probe can read. Numbers: `fit_ridge`; `fit_field` where they bend through the space,
`fit_fourier` by period. Honest scores: `split`, `score_probe`, `selectivity`, `description_length`,
`layer_curve`, `transfer`. At work: `calibrate` a threshold, `aggregate` over tokens, `fit_erasure`.
"""

from probes.classify import fit_lda as fit_lda
from probes.classify import fit_logistic as fit_logistic
from probes.consistent import fit_consistent as fit_consistent
from probes.contrast import fit_mean_difference as fit_mean_difference
from probes.contrast import fit_pca_difference as fit_pca_difference
from probes.description import Description as Description
from probes.description import description_length as description_length
from probes.erase import Erasure as Erasure
from probes.erase import fit_erasure as fit_erasure
from probes.errors import ProbeError as ProbeError
from probes.field import fit_field as fit_field
from probes.field_probe import FieldProbe as FieldProbe
from probes.fourier import fit_fourier as fit_fourier
from probes.fourier_probe import FourierProbe as FourierProbe
from probes.held_out import auroc as auroc
from probes.layers import LayerCurve as LayerCurve
from probes.layers import Transfer as Transfer
from probes.layers import layer_curve as layer_curve
from probes.layers import transfer as transfer
from probes.linear import LinearProbe as LinearProbe
from probes.mlp import fit_mlp as fit_mlp
from probes.mlp_probe import MLPProbe as MLPProbe
from probes.ordinal import OrdinalProbe as OrdinalProbe
from probes.ordinal import fit_ordinal as fit_ordinal
from probes.regress import fit_ridge as fit_ridge
from probes.scores import ProbeScores as ProbeScores
from probes.scores import Score as Score
from probes.scores import score_probe as score_probe
from probes.selectivity import Selectivity as Selectivity
from probes.selectivity import control_labels as control_labels
from probes.selectivity import selectivity as selectivity
from probes.splits import folds as folds
from probes.splits import require_disjoint as require_disjoint
from probes.splits import split as split
from probes.thresholds import Threshold as Threshold
from probes.thresholds import aggregate as aggregate
from probes.thresholds import calibrate as calibrate
