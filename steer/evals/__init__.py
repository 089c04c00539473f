"""Evaluation: results that others can trust, because they say what was run and what it did.

`manifest` says which plan ran in which model, `audit` keeps one chained record per generation,
`verification` finds any change in such a file, `evidence` turns a receipt into what a record holds,
`naming` holds a file to the digest that was promised. The ways in are packages of their own:
`inspecting` (Inspect), `harness` (lm-eval), `server`; the first and the last share `batching`.
`tasks` are the local tasks, `measuring` puts a plan to them (`evaluate`), `report` has what that
makes: the numbers, the page and the gate. No way in is imported from here.
"""

from steer.evals.audit import AuditLog as AuditLog
from steer.evals.audit import open_log as open_log
from steer.evals.audit import resume_log as resume_log
from steer.evals.evidence import evidence_of as evidence_of
from steer.evals.evidence import require_fired as require_fired
from steer.evals.manifest import Manifest as Manifest
from steer.evals.manifest import manifest_of as manifest_of
from steer.evals.manifest import require_same as require_same
from steer.evals.measuring.evaluation import Settings as Settings
from steer.evals.measuring.evaluation import evaluate as evaluate
from steer.evals.refusals import Refused as Refused
from steer.evals.report.gating import Limit as Limit
from steer.evals.report.gating import gate as gate
from steer.evals.report.page import write_page as write_page
from steer.evals.report.values import Report as Report
from steer.evals.tasks import TASKS as TASKS
from steer.evals.tasks import Choice as Choice
from steer.evals.tasks import Prompt as Prompt
from steer.evals.tasks import Task as Task
from steer.evals.tasks import items_of as items_of
from steer.evals.verification import Verification as Verification
from steer.evals.verification import verify as verify
