"""Read and steer language models from the inside.

    model -> sites -> capture -> fit -> intervention -> attach -> generate -> measure

`load` or `wrap` gives an LM. A Site says where, a Scope which tokens. `lm.capture` reads
Activations; `probes` and `manifolds` fit read-outs and shapes on them. An intervention is a frozen
recipe (Add, Ablate, Clamp, Scale, Rotate, Affine, Patch, MoveTo, MoveAlong, Snap, Erase, When,
Monitor, PreserveNorm, Redirect, Custom); a plan is a list of them, or Rows, one list per row of the
batch.
`lm.attached(plan)`, `lm.generate`, `lm.logits`, `lm.stream` apply a plan; a Receipt says what it
did. `sweep` runs many plans at many prompts in few passes, `generate_sweep` their generations;
`patching.sweep` maps which states carry a behaviour, `attribution.atp` estimates it,
`interchange.fit_das` learns the subspace that carries a variable; `compiled` steers without hooks
that come and go, `bake` writes a plan into weights, `suggest_strength` finds the strength that
costs a stated number of nats, `evals.evaluate` reports what a plan does, beside its controls, and
what it costs. `save` and `load_artifact` keep any of these values.
"""

from steer import attribution as attribution
from steer import belief as belief
from steer import evals as evals
from steer import interchange as interchange
from steer import patching as patching
from steer import pullback as pullback
from steer.activations import Activations as Activations
from steer.artifacts import load_artifact as load_artifact
from steer.artifacts import save as save
from steer.bake import bake as bake
from steer.check import CheckReport as CheckReport
from steer.check import check as check
from steer.compiled import Compiled as Compiled
from steer.compiled import compiled as compiled
from steer.damage import Suggestion as Suggestion
from steer.damage import divergence as divergence
from steer.damage import suggest_strength as suggest_strength
from steer.engine import Batch as Batch
from steer.engine import Cost as Cost
from steer.errors import BeliefError as BeliefError
from steer.errors import ModelNotFound as ModelNotFound
from steer.errors import NeverFired as NeverFired
from steer.errors import PlanError as PlanError
from steer.errors import ScopeError as ScopeError
from steer.errors import SiteNotFound as SiteNotFound
from steer.errors import SpecError as SpecError
from steer.errors import SteerError as SteerError
from steer.errors import UnsupportedModel as UnsupportedModel
from steer.errors import WidthMismatch as WidthMismatch
from steer.generation import Generations as Generations
from steer.interventions import Ablate as Ablate
from steer.interventions import Add as Add
from steer.interventions import Affine as Affine
from steer.interventions import Clamp as Clamp
from steer.interventions import Custom as Custom
from steer.interventions import Dual as Dual
from steer.interventions import Erase as Erase
from steer.interventions import Follow as Follow
from steer.interventions import Monitor as Monitor
from steer.interventions import MoveAlong as MoveAlong
from steer.interventions import MoveTo as MoveTo
from steer.interventions import Patch as Patch
from steer.interventions import Plan as Plan
from steer.interventions import PreserveNorm as PreserveNorm
from steer.interventions import ProbeField as ProbeField
from steer.interventions import Read as Read
from steer.interventions import Redirect as Redirect
from steer.interventions import Relative as Relative
from steer.interventions import Rotate as Rotate
from steer.interventions import Rows as Rows
from steer.interventions import Scale as Scale
from steer.interventions import Snap as Snap
from steer.interventions import To as To
from steer.interventions import When as When
from steer.interventions import mean as mean
from steer.interventions import resample as resample
from steer.interventions import zero as zero
from steer.lm import LM as LM
from steer.lm import load as load
from steer.lm import wrap as wrap
from steer.receipt import Receipt as Receipt
from steer.registry import HookRegistry as HookRegistry
from steer.scopes import ALL as ALL
from steer.scopes import FIRST as FIRST
from steer.scopes import GENERATED as GENERATED
from steer.scopes import LAST as LAST
from steer.scopes import OUTPUT as OUTPUT
from steer.scopes import PROMPT as PROMPT
from steer.scopes import Scope as Scope
from steer.scopes import at as at
from steer.scopes import span as span
from steer.scopes import text as text
from steer.sites import ModuleSite as ModuleSite
from steer.sites import Site as Site
from steer.step import Step as Step
from steer.sweep import Sweep as Sweep
from steer.sweep import generate_sweep as generate_sweep
from steer.sweep import sweep as sweep
