"""Attribution: the effects of patches estimated from gradients, verified, and gathered in circuits.

guess = steer.attribution.atp(lm, clean, corrupted, steer.patching.heads(lm), metric)
steer.attribution.verify(lm, guess, clean, corrupted, metric, n=30).rank_correlation
steer.attribution.edges(lm, clean, corrupted, metric).top(10)    # sender -> receiver
found = steer.attribution.find_circuit(lm, clean, corrupted, metric, size=20)
steer.attribution.faithfulness(lm, others, others_corrupted, [found], metric).share
"""

from steer.attribution.circuits import Faithfulness as Faithfulness
from steer.attribution.circuits import faithfulness as faithfulness
from steer.attribution.circuits import find_circuit as find_circuit
from steer.attribution.circuits import overlap as overlap
from steer.attribution.circuits import threshold_circuit as threshold_circuit
from steer.attribution.circuits import without_each as without_each
from steer.attribution.complete import Completeness as Completeness
from steer.attribution.complete import completeness as completeness
from steer.attribution.edge_checks import verify_edges as verify_edges
from steer.attribution.edges import EdgeMap as EdgeMap
from steer.attribution.edges import edges as edges
from steer.attribution.estimating import Verified as Verified
from steer.attribution.estimating import atp as atp
from steer.attribution.estimating import verify as verify
from steer.attribution.refining import refine_circuit as refine_circuit
