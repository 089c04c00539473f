"""The engine: runs only what an intervention can change.

An edit at block l and position p changes blocks >= l and positions >= p only. The prompts run once
(`base`), and each arm of a sweep runs from its own start on: its rows join the climb at their own
block (`climb`), with the keys and values of the prefix shared (`prefix`). `plan` decides beforehand
which rows run together; `starts` finds where each arm begins and which arms do nothing; `proof`
tries on the model at hand whether it can be started in the middle at all.
"""

from steer.engine.batch import Batch as Batch
from steer.engine.batch import Measure as Measure
from steer.engine.cost import Cost as Cost
from steer.engine.work import Job as Job
