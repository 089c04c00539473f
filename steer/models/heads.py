"""How heads can be told from one pass, without knowing rotary embedding, mask or scale.

Under any causal attention the first token sees only itself, so z of it is v of it (times a number
below one where an attention sink takes a share), and z of the second token is one mix, per head, of
v of the two. A wrong head count, kv order or v slice breaks this.
"""

import torch
from torch import Tensor


def head_fault(v: Tensor, z: Tensor) -> str | None:
    """Return what is wrong with the heads of v [batch, pos, kv head, d_head] and z, or None."""
    n_heads, n_kv_heads = z.shape[-2], v.shape[-2]
    if n_heads % n_kv_heads:
        return f"{n_heads} heads cannot share {n_kv_heads} kv heads evenly"
    limit = 5e-3 if z.dtype in (torch.float32, torch.float64) else 3e-2
    shared = v.float().to(z.device).repeat_interleave(n_heads // n_kv_heads, dim=-2)
    mixed = z.float()
    for token, used in ((0, 1), (1, 2)):
        weights, error = _fit(shared[:, :used], mixed[:, token])
        if error > limit:
            return (
                f"token {token} of z is no mix of v of the tokens up to it, head by head "
                f"(error {error:.2g} of its size; {limit:.2g} is rounding)"
            )
        if float(weights.min()) < -0.05 or float(weights.sum(-1).max()) > 1.05:
            return f"the attention weights of token {token} would not lie between 0 and 1"
    return _split_fault(_fit(shared[:, :2], mixed[:, 1])[0], limit)


def _fit(v: Tensor, z: Tensor) -> tuple[Tensor, float]:
    """Return the weights [batch, head, token] with z = weights @ v, and the relative error."""
    basis = v.permute(0, 2, 3, 1)  # batch, head, d_head, token
    target = z.unsqueeze(-1)
    weights = torch.linalg.pinv(basis) @ target
    error = (basis @ weights - target).abs().amax((-1, -2))
    size = basis.abs().amax((-1, -2)).clamp_min(1e-12)
    return weights.squeeze(-1), float((error / size).max())


def _split_fault(weights: Tensor, limit: float) -> str | None:
    """Return the fault where neighbouring heads always attend alike: one head cut in several."""
    n_heads = weights.shape[1]
    spread = float(weights.std(dim=1).max()) if n_heads > 1 else 0.0
    if spread < 10 * limit:  # all heads attend alike (tiny random weights): nothing can be told
        return None
    for pieces in range(2, n_heads):
        if n_heads % pieces:
            continue
        grouped = weights.unflatten(1, (n_heads // pieces, pieces))
        if float((grouped - grouped[:, :, :1]).abs().max()) < 0.01 * spread:
            return (
                f"its {n_heads} heads attend alike in groups of {pieces}: there seem to be "
                f"{n_heads // pieces} heads"
            )
    return None
