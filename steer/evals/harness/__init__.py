"""lm-eval (lm_eval >= 0.4.13): its tasks under a plan, by `steer-lm-eval` or its own `evaluate`.

`model` is the model class, `arguments` what its argument string may say, `spans` scores token
spans, `answering` generates, `settings` reads generation arguments, `caching` guards lm-eval's
answer cache, `files` reads and writes its `steered` files, `commands` is the console script.
Nothing of lm-eval is imported before `model` or `commands` is, or `register` is called.
"""

from steer.evals.harness.files import read_steered as read_steered
from steer.evals.harness.files import write_steered as write_steered
from steer.evals.harness.registering import register as register
from steer.evals.harness.spans import score_spans as score_spans
