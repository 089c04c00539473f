"""Laws of sweeps: every arm equals a loop that attaches it and runs whole passes."""

from collections.abc import Callable

import steer
from steer import Scope, Site
from steer.interventions import Plan
from tests.laws.interventions import FACTORIES, Setting, Wanted, make
from tests.laws.rows import RELATIVE
from tests.laws.running import gap

N_PROMPTS = 4


def arms_of(setting: Setting, scope: Scope = steer.OUTPUT) -> dict[str, Plan]:
    """Return every intervention as an arm, nothing, all of some kinds at once, and Rows."""
    wanted = Wanted(setting, range(N_PROMPTS), scope)
    arms: dict[str, Plan] = {name: [make(name, wanted)] for name in FACTORIES}
    arms["nothing"] = []
    arms["off"] = [make("add", Wanted(setting, range(N_PROMPTS), scope, 0.0))]
    arms["twice as much"] = [make("add", Wanted(setting, range(N_PROMPTS), scope, 2.0))]
    inner = make("add", wanted)
    arms["redirected back"] = [steer.Redirect(inner, -setting.direction("redirect"))]
    arms["several"] = [make(name, wanted) for name in ("when", "move-along", "patch-tokens", "add")]
    kinds = ("clamp", "rotate", "move-to", "add")
    arms["rows"] = steer.Rows([[make(kind, wanted)] for kind in kinds])
    direction = setting.direction("first block")
    arms["early"] = [steer.Add(Site(0, "resid_pre"), direction, scope=steer.at(1))]
    arms["late"] = [steer.Add(Site.ln_final(), direction, scope=scope)]
    last = setting.lm.n_layers - 1
    arms["last block"] = [steer.Add(Site(last, "resid_post"), direction, scope=scope)]
    arms["inside"] = [steer.Ablate(Site(last, "mlp_out"), direction, scope=scope)]
    return arms


def law_a_sweep_equals_a_loop(setting: Setting) -> None:
    """Each arm's logits are those of a whole pass with the arm attached, and so is its receipt."""
    lm, prompts = setting.lm, setting.prompts[:N_PROMPTS]
    arms = arms_of(setting)
    sweep = steer.sweep(lm, prompts, arms, lambda logits, _: logits)
    natural = lm.logits(prompts)
    assert gap(sweep.natural, natural.cpu()) <= RELATIVE * float(natural.abs().max())
    for at, (name, plan) in enumerate(arms.items()):
        with lm.attached(plan) if plan else _nothing() as run:
            alone = lm.logits(prompts)
        apart = gap(alone.cpu(), sweep.values[at]) / float(alone.abs().max())
        assert apart <= 2 * RELATIVE, f"{name}: a sweep differs from a whole pass by {apart:.1e}"
        if run is not None:
            _same_counts(name, run.receipt, sweep.receipts[at])
    assert sweep.executed == sweep.cost().token_blocks, "the cost was not what ran"
    assert not sweep.cost().note, f"no arm begins at its own start: {sweep.cost().note}"
    assert lm.registry.live == 0


def law_a_sweep_generates_like_a_loop(setting: Setting) -> None:
    """Each arm's greedy text, its log-probabilities and its receipt are those of lm.generate."""
    lm, prompts = setting.lm, setting.prompts[:N_PROMPTS]
    arms = arms_of(setting)
    generated = steer.generate_sweep(lm, prompts, arms, max_new_tokens=3)
    for name, plan in arms.items():
        alone = lm.generate(prompts, plan, max_new_tokens=3)
        together = generated[name]
        assert alone.tokens == together.tokens, f"{name}: a sweep generates another text"
        assert alone.log_probs is not None
        assert together.log_probs is not None
        pairs = zip(alone.log_probs, together.log_probs, strict=True)
        apart = max(gap(a, b) for a, b in pairs)
        assert apart <= 1e-3, f"{name}: log-probabilities differ by {apart:.1e}"
        _same_counts(name, alone.receipt, together.receipt)
    assert lm.registry.live == 0


def law_a_map_of_positions_equals_a_loop(setting: Setting) -> None:
    """Arms of all blocks and of several last tokens, packed into one pass, equal whole passes."""
    lm, prompts = setting.lm, setting.prompts[:N_PROMPTS]
    blocks = sorted({0, lm.n_layers // 2, lm.n_layers - 1})
    direction = 4 * setting.direction("map")
    arms = {
        f"{block}, {place}": [steer.Add(Site(block), direction, scope=steer.at(place))]
        for block in blocks
        for place in (-1, -2, -3)
    }
    sweep = steer.sweep(lm, prompts, arms, lambda logits, _: logits)
    assert sweep.cost().passes == 1, "suffixes of several lengths were not packed"
    for at, (name, plan) in enumerate(arms.items()):
        alone = lm.logits(prompts, plan)
        apart = gap(alone.cpu(), sweep.values[at]) / float(alone.abs().max())
        assert apart <= 2 * RELATIVE, f"{name}: a packed sweep differs by {apart:.1e}"


class _nothing:
    """Stands for an empty plan, which has no receipt."""

    def __enter__(self) -> None:
        """Attach nothing."""

    def __exit__(self, *_: object) -> None:
        """Detach nothing."""


def _same_counts(name: str, alone: steer.Receipt, swept: steer.Receipt) -> None:
    for mine, other in zip(alone.lines, swept.lines, strict=True):
        assert mine.intervention == other.intervention
        for count in ("seen", "eligible", "edited"):
            a, b = getattr(mine, count).tolist(), getattr(other, count).tolist()
            assert a == b, f"{name}: {count} is {b} in a sweep and {a} in a whole pass"


SWEEP_LAWS: tuple[Callable[[Setting], None], ...] = (
    law_a_sweep_equals_a_loop,
    law_a_sweep_generates_like_a_loop,
    law_a_map_of_positions_equals_a_loop,
)
