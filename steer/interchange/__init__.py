"""Interchange: which part of a state is a causal variable, learned, scored and distrusted.

    some = steer.interchange.trials(lm, base, source, expected, among=answers)
    found = steer.interchange.fit_das(lm, some[:300], site, dims=2)
    steer.interchange.controls(lm, some[300:], found, train=some[:300])
    steer.interchange.check_illusion(lm, clean, corrupted, site, found.basis, metric)

A subspace is a tensor: `steer.Patch(site, source, subspace=found.basis)` exchanges it anywhere.
"""

from steer.interchange.controls import Controls as Controls
from steer.interchange.controls import controls as controls
from steer.interchange.controls import random_subspaces as random_subspaces
from steer.interchange.fitting import Subspace as Subspace
from steer.interchange.fitting import Training as Training
from steer.interchange.fitting import fit_boundless as fit_boundless
from steer.interchange.fitting import fit_das as fit_das
from steer.interchange.fitting import fit_mask as fit_mask
from steer.interchange.illusion import IllusionReport as IllusionReport
from steer.interchange.illusion import check_illusion as check_illusion
from steer.interchange.trials import Accuracy as Accuracy
from steer.interchange.trials import Trials as Trials
from steer.interchange.trials import interchange_accuracy as interchange_accuracy
from steer.interchange.trials import trials as trials
