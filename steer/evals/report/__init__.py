"""The report of an evaluation, and `steer gate`, which holds it against stated limits.

`values` is the report itself, `effects` has the statistics of a dose-response, `roc` those of a
monitor, `gating` the limits, `page` shows it all on one HTML page.
"""

from steer.evals.report.gating import Limit as Limit
from steer.evals.report.gating import Verdict as Verdict
from steer.evals.report.gating import gate as gate
from steer.evals.report.gating import read_policy as read_policy
from steer.evals.report.values import Curve as Curve
from steer.evals.report.values import Interval as Interval
from steer.evals.report.values import Report as Report
