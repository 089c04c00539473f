"""Interventions: frozen recipes with a pure `edit(h, step) -> h`. No hook, no state, no model."""

from steer.interventions.arithmetic import Relative as Relative
from steer.interventions.curved import MoveAlong as MoveAlong
from steer.interventions.curved import MoveTo as MoveTo
from steer.interventions.curved import Snap as Snap
from steer.interventions.erase import Erase as Erase
from steer.interventions.gates import Monitor as Monitor
from steer.interventions.gates import Read as Read
from steer.interventions.gates import When as When
from steer.interventions.linear import Ablate as Ablate
from steer.interventions.linear import Add as Add
from steer.interventions.linear import Affine as Affine
from steer.interventions.linear import Clamp as Clamp
from steer.interventions.linear import Rotate as Rotate
from steer.interventions.linear import Scale as Scale
from steer.interventions.patch import Patch as Patch
from steer.interventions.patch import mean as mean
from steer.interventions.patch import resample as resample
from steer.interventions.patch import zero as zero
from steer.interventions.plans import Plan as Plan
from steer.interventions.plans import Rows as Rows
from steer.interventions.wrap import Custom as Custom
from steer.interventions.wrap import PreserveNorm as PreserveNorm
