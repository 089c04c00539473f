"""Probes: read-outs of activations. Arrays in, frozen fits out; no model is known here.

A fit takes x of [sample, d], or [site, sample, d] to fit every site at once, and returns a
`LinearProbe`: `scores(x)` reads, `direction` (unit norm, towards the positive class) steers,
`origin` says where the activations came from, `diagnostics` has the held-out score.

    probe = probes.fit_logistic(acts[site], labels, origin=acts.origin(site))
    probe.scores(x)                        # probabilities
    steer.Add(site, probe.direction, 4.0)

Contrast sets: `fit_mean_difference` (CAA), `fit_pca_difference` (LAT); without labels
`fit_consistent`. Labels: `fit_logistic`, `fit_lda`; ordered ones `fit_ordinal`; `fit_mlp` for what
no linear probe can read. Numbers: `fit_ridge`.
"""

from probes.classify import fit_lda as fit_lda
from probes.classify import fit_logistic as fit_logistic
from probes.consistent import fit_consistent as fit_consistent
from probes.contrast import fit_mean_difference as fit_mean_difference
from probes.contrast import fit_pca_difference as fit_pca_difference
from probes.errors import ProbeError as ProbeError
from probes.held_out import auroc as auroc
from probes.linear import LinearProbe as LinearProbe
from probes.mlp import fit_mlp as fit_mlp
from probes.mlp_probe import MLPProbe as MLPProbe
from probes.ordinal import OrdinalProbe as OrdinalProbe
from probes.ordinal import fit_ordinal as fit_ordinal
from probes.regress import fit_ridge as fit_ridge
