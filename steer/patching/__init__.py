"""Activation patching: which states, heads and neurons carry a behaviour from run to run.

    metric = steer.patching.logit_difference(right_ids, wrong_ids)
    found = steer.patching.sweep(lm, clean, corrupted, lm.sites("resid_pre"), metric)
    found.effect, found.interval(), found.p_values(), found.top(5), found.plot()

`sweep` builds the patches and runs them as arms of one `steer.sweep`. Every pair of prompts keeps
its own value, so that intervals and p-values are over pairs.
"""

from steer.patching.aligning import Alignment as Alignment
from steer.patching.aligning import aligned as aligned
from steer.patching.mapping import Prepared as Prepared
from steer.patching.mapping import heads as heads
from steer.patching.mapping import prepared as prepared
from steer.patching.mapping import sweep as sweep
from steer.patching.metrics import log_probability as log_probability
from steer.patching.metrics import logit_difference as logit_difference
from steer.patching.patch_map import PatchMap as PatchMap
from steer.patching.paths import direct as direct
from steer.patching.paths import paths as paths
