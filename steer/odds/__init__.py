"""Beliefs as pure arrays: laws of log-odds from evidence and steering, their fits and rivals."""

from steer.odds.belief import Belief as Belief
from steer.odds.belief import Decay as Decay
from steer.odds.compare import BASELINES as BASELINES
from steer.odds.compare import Additivity as Additivity
from steer.odds.compare import Comparison as Comparison
from steer.odds.compare import additivity as additivity
from steer.odds.compare import compare as compare
from steer.odds.design import Design as Design
from steer.odds.design import identified as identified
from steer.odds.fit import Data as Data
from steer.odds.fit import data_of as data_of
from steer.odds.fit import fit as fit
from steer.odds.intervals import Interval as Interval
from steer.odds.intervals import bootstrap as bootstrap
from steer.odds.intervals import profile as profile
