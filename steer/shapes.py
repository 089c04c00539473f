"""The legend of axis names: one spelling for each axis, everywhere.

batch   rows of the user's batch          pos     tokens of a row, padded to the longest
d_model width of the residual stream      head    attention heads (kv heads for k and v)
d_head  width of one head                 d_mlp   hidden width of the MLP
vocab   vocabulary                        layer   blocks of the stack
site    a stack of sites                  sample  examples of a fit          k  a subspace
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Vector = Float[Tensor, " d_model"]
"""One direction in the residual stream."""

Basis = Float[Tensor, "k d_model"]
"""Rows spanning a subspace; orthonormal once inside an intervention."""

Tokens = Int[Tensor, "batch pos"]
"""Token ids, positions or row numbers, one per token."""

TokenMask = Bool[Tensor, "batch pos"]
"""One truth value per token."""
