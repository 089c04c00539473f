"""Attribution: the effects of patches estimated from gradients, and the estimates verified.

guess = steer.attribution.atp(lm, clean, corrupted, steer.patching.heads(lm), metric)
steer.attribution.verify(lm, guess, clean, corrupted, metric, n=30).rank_correlation
"""

from steer.attribution.estimating import Verified as Verified
from steer.attribution.estimating import atp as atp
from steer.attribution.estimating import verify as verify
