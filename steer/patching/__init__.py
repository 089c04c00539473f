"""Activation patching: which states, heads and neurons carry a behaviour from run to run.

    metric = steer.patching.logit_difference(right_ids, wrong_ids)
    found = steer.patching.sweep(lm, clean, corrupted, lm.sites("resid_pre"), metric)
    found.effect, found.interval(), found.p_values(), found.top(5), found.plot()

`sweep` builds the patches and runs them as arms of one `steer.sweep`. Every pair of prompts keeps
its own value, so that intervals and p-values are over pairs. `paths` and `direct` follow what one
component says to another; `ablate`, `knock_out` and `skip` take things away without a pair.
"""

from steer.patching.ablated import Ablated as Ablated
from steer.patching.ablating import ablate as ablate
from steer.patching.ablating import skip as skip
from steer.patching.ablating import skip_each as skip_each
from steer.patching.aligning import Alignment as Alignment
from steer.patching.aligning import aligned as aligned
from steer.patching.knock_outs import Cut as Cut
from steer.patching.knock_outs import knock_out as knock_out
from steer.patching.knock_outs import knock_out_plan as knock_out_plan
from steer.patching.knock_outs import windows as windows
from steer.patching.mapping import Prepared as Prepared
from steer.patching.mapping import heads as heads
from steer.patching.mapping import prepared as prepared
from steer.patching.mapping import sweep as sweep
from steer.patching.metrics import log_probability as log_probability
from steer.patching.metrics import logit_difference as logit_difference
from steer.patching.patch_map import PatchMap as PatchMap
from steer.patching.paths import direct as direct
from steer.patching.paths import paths as paths
