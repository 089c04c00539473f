"""Models: loading them, knowing where they came from, and knowing where their sites are."""

from steer.models.load import LoadedModel as LoadedModel
from steer.models.load import load_model as load_model
from steer.models.load import wrap_model as wrap_model
from steer.models.provenance import Provenance as Provenance
from steer.models.provenance import weight_hash as weight_hash
