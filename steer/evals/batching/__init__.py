"""The micro-batcher: requests of many clients, each with a plan of its own, in shared passes.

`asked` has the values, `choosing` picks each row's next token, `watching` follows each row's text,
`passing` runs one batch, `batcher` gathers requests and hands out answers.
"""

from steer.evals.batching.asked import GREEDY as GREEDY
from steer.evals.batching.asked import Answer as Answer
from steer.evals.batching.asked import Asked as Asked
from steer.evals.batching.asked import Guard as Guard
from steer.evals.batching.asked import Sampling as Sampling
from steer.evals.batching.asked import Shape as Shape
from steer.evals.batching.batcher import Batcher as Batcher
from steer.evals.batching.batcher import Ticket as Ticket
