"""Effects of queries and keys through the softmax itself: the correction of AtP*.

A query or a key acts through a softmax that saturates, where its gradient is next to nothing. So
the pattern is computed anew with the other run's query (or key) and its change is weighed by the
metric's gradient with respect to the pattern (Kramar et al. 2024, arXiv:2403.00745, section 3.1).
Pure, but for the model's own rotary and norm modules, which are called on q and k.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steer.models.attention import AttentionFacts, rotated, scores_of


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One block's attention in the run that is patched; [row, position, head, d_head]."""

    model: nn.Module
    facts: AttentionFacts
    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    z_slope: Tensor
    """[way, row, position, head, d_head]: gradient of the metric with respect to z."""
    mask: Tensor
    """[row, position] bool."""

    @property
    def slope(self) -> Tensor:
        """[way, row, head, query, key]: the metric's gradient with respect to the pattern."""
        shared = self.v.repeat_interleave(self.q.shape[2] // self.v.shape[2], dim=2)
        return torch.einsum("wbihd,bjhd->wbhij", self.z_slope.float(), shared.float())

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Return [row, head, query, key], before the softmax, of q and k as read at their sites."""
        columns = torch.arange(q.shape[1], device=q.device)[None]
        turned = rotated(self.model, self.facts, self.layer, q, k, columns)
        return scores_of(
            self.facts,
            self.layer,
            *turned,
            query_positions=columns,
            key_positions=columns,
            key_mask=self.mask,
        )


def query_effects(block: Block, q: Tensor) -> Tensor:
    """Return [way, row, position, head]: each position's query exchanged, one at a time.

    A query only turns its own row of the pattern, so all are exchanged in one computation.
    """
    before = block.scores(block.q, block.k).softmax(-1)
    after = block.scores(q, block.k).softmax(-1)
    moved = ((after - before) * block.slope).sum(-1)
    return moved.transpose(-1, -2)


def key_effects(block: Block, k: Tensor) -> Tensor:
    """Return [way, row, position, kv head]: each position's key exchanged, one at a time.

    With one score of a softmax changed, the pattern A becomes (A but for A_p, r A_p) / (1 - A_p +
    r A_p), r = exp(the score's change): a closed form, so no pattern is made for each position.
    """
    old, new = block.scores(block.q, block.k), block.scores(block.q, k)
    pattern = old.softmax(-1)
    # In logs: r overflows where a key that was unseen becomes the one that is seen.
    log_share = pattern.clamp(min=1e-30).log() + (new - old)
    log_rest = torch.log1p(-pattern.clamp(max=1 - 1e-7))
    share = torch.sigmoid(log_share - log_rest)
    slope = block.slope
    whole = (pattern * slope).sum(-1, keepdim=True)
    rest = (whole - pattern * slope) / (1 - pattern).clamp(min=1e-7)
    moved = share * slope + (1 - share) * rest - whole
    length = pattern.shape[-1]
    seen = torch.ones(length, length, device=pattern.device).tril().bool() & (
        block.mask[:, None, None, :] & block.mask[:, None, :, None]
    )
    by_key = torch.where(seen, moved, 0.0).sum(-2)
    groups = block.k.shape[2]
    return by_key.unflatten(2, (groups, -1)).sum(3).transpose(-1, -2)
