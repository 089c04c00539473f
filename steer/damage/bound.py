"""Where a plan's KL will be, from one Jacobian-vector product.

To second order in a factor g of the plan's strength, KL(p || p_g) = g^2 / 2 Var_p(J v), where J v
is the derivative of the logits by g at 0 and the variance is over the vocabulary under p: the
Fisher metric of the output in the direction of the plan. The real KL leaves it as soon as the edit
is no longer small, so it only says where to begin.
"""

import warnings
from collections.abc import Sequence

from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from steer.damage.diverging import Divergence, Texts, measured
from steer.interventions.believed import Believed
from steer.interventions.gates import Monitor, When
from steer.interventions.linear import Rotate
from steer.interventions.patch import Patch
from steer.interventions.scaled import scaled
from steer.interventions.wrap import Custom
from steer.lm import LM
from steer.protocols import Intervention
from steer.scopes import Scope
from steer.step import Step

SMALL = 1e-2
"""The factor of finite differences, in fp32: of a rotation's angle, and of the fallback."""


def variances(
    lm: LM, texts: Texts, plan: Sequence[Intervention], scope: Scope
) -> tuple[Divergence, str]:
    """Return [1, token] Var_p(J v) and how it was found.

    Forward-mode differentiation where the model's own operations have it; else the difference of
    two passes at small factors of both signs.
    """
    if not any(_reads(item) for item in plan):
        try:
            return _by_jvp(lm, texts, plan, scope), "jvp"
        except (RuntimeError, NotImplementedError):
            # Some kernels (quantised, compiled, fused) have no forward derivative.
            pass
    return _by_difference(lm, texts, plan, scope), "difference"


def _by_jvp(lm: LM, texts: Texts, plan: Sequence[Intervention], scope: Scope) -> Divergence:
    arms: list[list[Intervention]] = [[_dual(item) for item in plan]]
    # The fused kernels of attention have no forward derivative; the plain one does. torch 2.13
    # compiles its forward rules with a function that it has deprecated itself.
    with warnings.catch_warnings(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        return measured(lm, texts, lambda _: arms, scope, _variance)


def _dual(item: Intervention) -> Custom:
    """Return an edit that leaves h as it is and carries the derivative by the factor at 0.

    Every kind but a rotation is linear in its strength, h + s (edit(h) - h): its derivative is what
    it does at its own strength.
    """
    ends = [scaled([item], sign * SMALL)[0] for sign in (1, -1)]

    def edit(h: Tensor, step: Step) -> Tensor:
        there, before = forward_ad.unpack_dual(h)
        x = there.float()
        if isinstance(item, Rotate):
            up, down = (end.edit(x, step) for end in ends)
            slope = (up - down) / (2 * SMALL)
        else:
            slope = item.edit(x, step) - x
        slope = slope.to(h.dtype)
        return forward_ad.make_dual(there, slope if before is None else before + slope)

    return Custom(item.site, edit, scope=item.scope)


def _reads(item: Intervention) -> bool:
    """Return whether it needs what the pass reads, which a plain function is not given."""
    return isinstance(item, When | Monitor | Believed | Patch)


def _variance(plain: Tensor, steered: Tensor) -> Tensor:
    tangent = forward_ad.unpack_dual(steered).tangent
    if tangent is None:
        raise NotImplementedError("an operation of this model drops the forward derivative")
    return _spread(forward_ad.unpack_dual(plain).primal, tangent)


def _by_difference(lm: LM, texts: Texts, plan: Sequence[Intervention], scope: Scope) -> Divergence:
    arms = [scaled(plan, SMALL), scaled(plan, -SMALL)]

    def reduce(plain: Tensor, steered: Tensor) -> Tensor:
        up, down = steered.float()
        slope = ((up - down) / (2 * SMALL))[None]
        return _spread(plain, slope).expand(2, -1, -1)

    found = measured(lm, texts, lambda _: arms, scope, reduce)
    return Divergence(found.nats[:1], found.rows, found.positions)


def _spread(plain: Tensor, slope: Tensor) -> Tensor:
    """Return [arm, row, pos]: the variance of a slope over the vocabulary under the model's p."""
    p = plain.float().softmax(-1)
    slope = slope.float()
    centred = slope - (p * slope).sum(-1, keepdim=True)
    return (p * centred**2).sum(-1)
