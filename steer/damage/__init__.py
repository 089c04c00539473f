"""What a plan costs in nats, and the strength at which it costs as much as another.

`diverging` measures the KL of each token's prediction from the model's own, `bound` says from one
Jacobian-vector product where it will be, `suggesting` finds the strength of a budget.
"""

from steer.damage.diverging import Divergence as Divergence
from steer.damage.diverging import divergence as divergence
from steer.damage.suggesting import Suggestion as Suggestion
from steer.damage.suggesting import suggest_strength as suggest_strength
