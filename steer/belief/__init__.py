"""Belief dynamics: predict what context and steering will do, before doing it.

The fits are pure arrays (`steer.odds`); here they meet a model: `controller` sets the strength that
a row's context calls for, `Forecast` reports, `predict` tells beforehand.
"""

from steer.belief.controlling import controller as controller
from steer.belief.controlling import identity as identity
from steer.belief.controlling import outcome as outcome
from steer.belief.predicting import Prediction as Prediction
from steer.belief.predicting import predict as predict
from steer.interventions.believed import Control as Control
from steer.interventions.believed import Count as Count
from steer.interventions.believed import Forecast as Forecast
from steer.interventions.believed import TokenOdds as TokenOdds
from steer.odds import BASELINES as BASELINES
from steer.odds import Additivity as Additivity
from steer.odds import Belief as Belief
from steer.odds import BetaBernoulli as BetaBernoulli
from steer.odds import ChangePoint as ChangePoint
from steer.odds import Comparison as Comparison
from steer.odds import Concepts as Concepts
from steer.odds import Data as Data
from steer.odds import Decay as Decay
from steer.odds import Design as Design
from steer.odds import Embedding as Embedding
from steer.odds import Entanglement as Entanglement
from steer.odds import Exact as Exact
from steer.odds import Forgetting as Forgetting
from steer.odds import Interval as Interval
from steer.odds import Mantel as Mantel
from steer.odds import NormalInverseGamma as NormalInverseGamma
from steer.odds import Rational as Rational
from steer.odds import Trained as Trained
from steer.odds import Trajectory as Trajectory
from steer.odds import additivity as additivity
from steer.odds import bootstrap as bootstrap
from steer.odds import compare as compare
from steer.odds import complexity as complexity
from steer.odds import data_of as data_of
from steer.odds import distances as distances
from steer.odds import embed_distances as embed_distances
from steer.odds import embed_states as embed_states
from steer.odds import entanglement as entanglement
from steer.odds import fit as fit
from steer.odds import fit_concepts as fit_concepts
from steer.odds import fit_rational as fit_rational
from steer.odds import hellinger_distances as hellinger_distances
from steer.odds import identified as identified
from steer.odds import mantel as mantel
from steer.odds import nearest_mixture as nearest_mixture
from steer.odds import predictors as predictors
from steer.odds import profile as profile
from steer.odds import ratings as ratings
from steer.odds import trajectory as trajectory
from steer.odds import weights_of as weights_of
