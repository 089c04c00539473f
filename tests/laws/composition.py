"""The composition law: everything at once, different in every row, in one cached generation."""

from collections.abc import Sequence

import torch
from torch import Tensor

import steer
from steer import Site
from steer.protocols import Intervention
from tests.laws.interventions import Setting
from tests.laws.rows import RELATIVE
from tests.laws.running import gap, generated, same_bits

N_COMPOSED = 6
"""Rows of the batch; the last is left alone."""


def law_all_interventions_compose(setting: Setting, new: int = 8) -> None:
    """A gate, a manifold move, an add, a patch, a controller and readings equal single rows."""
    lm = setting.lm
    rows = setting.prompts[:N_COMPOSED]
    plan = steer.Rows([composed(setting, row) for row in range(N_COMPOSED)])
    assert len({len(row) for row in rows}) > 1, "the batch is not padded"
    plain = generated(lm, rows, [], new=new)
    together = generated(lm, rows, plan, new=new)
    for at, prompt in enumerate(rows):
        alone = generated(lm, [prompt], composed(setting, at), new=new)
        same = alone.tokens[0].tolist() == together.tokens[at].tolist()
        assert same, f"row {at} alone gives another text than in the batch"
        apart = gap(alone.logits[0], together.logits[at])
        relative = apart / float(alone.logits[0].abs().max())
        assert apart <= 1e-4, f"row {at} alone and in the batch differ by {apart:.1e}"
        assert relative <= RELATIVE, f"row {at} differs from itself alone by {relative:.1e} of it"
        moved = gap(plain.logits[at], together.logits[at])
        assert (moved > 0.01) == bool(composed(setting, at)), f"row {at} moves by {moved:.1e}"


def law_nested_blocks_compose(setting: Setting) -> None:
    """The same plan in two nested blocks, and in one, gives the same bits and the same receipts."""
    lm = setting.lm
    rows = setting.prompts[:N_COMPOSED]
    plans = [composed(setting, row) for row in range(N_COMPOSED)]
    whole = generated(lm, rows, steer.Rows(plans), new=3)
    with lm.attached(steer.Rows([plan[:2] for plan in plans])) as outer:
        inner = generated(lm, rows, steer.Rows([plan[2:] for plan in plans]), new=3)
    assert same_bits(whole.logits, inner.logits), "nested blocks do not compose as one list"
    assert len(outer.receipt) == 2 * (N_COMPOSED - 1)
    assert outer.receipt.fired


def law_a_receipt_tells_each_row(setting: Setting) -> None:
    """The receipt of a composed run counts, for each row, what was edited in that row alone."""
    lm, new = setting.lm, 4
    rows = setting.prompts[:N_COMPOSED]
    plans = [composed(setting, row) for row in range(N_COMPOSED)]
    receipt = lm.generate(rows, steer.Rows(plans), max_new_tokens=new).receipt
    states = lm.capture(rows, [setting.reads])[setting.reads].float()
    is_open = (setting.probe.scores(states) > 0).tolist()
    # Per row: gate at OUTPUT, move at OUTPUT, add at GENERATED, patch of two tokens, monitor,
    # controller at OUTPUT, forecast at LAST.
    eligible = [new, new, new - 1, 2, new, new, 1]
    for slot, wanted in enumerate(eligible):
        for row, plan in enumerate(plans[:-1]):
            named = [x for x in receipt.lines if x.intervention == repr(plan[slot])]
            (line,) = [x for x in named if int(x.eligible[row])]
            others = torch.arange(N_COMPOSED) != row
            assert int(line.eligible[row]) == wanted, f"row {row}: {line!r}"
            assert not bool(line.edited[others].any()), f"{line!r} edited another row than {row}"
            edits = 0 if slot in (4, 6) or (slot == 0 and not is_open[row]) else wanted
            assert int(line.edited[row]) == edits, f"row {row}: {line!r}"
            if slot >= 5:
                assert line.predicted is not None
                assert line.realised is not None
                assert bool(line.predicted[row].isfinite())
                assert bool(line.realised[row].isfinite())
    assert len(set(is_open[:-1])) == 2, "the rows do not tell an open gate from a closed one"


COMPOSITION_LAWS = (
    law_all_interventions_compose,
    law_nested_blocks_compose,
    law_a_receipt_tells_each_row,
)
"""Each takes a setting."""


def composed(setting: Setting, row: int) -> Sequence[Intervention]:
    """Return what one row gets: seven interventions, all different from every other row's."""
    if row == N_COMPOSED - 1:
        return []
    lm, site = setting.lm, setting.site
    assert site.layer is not None
    later = Site(site.layer + 1, "resid_post")
    read = steer.Read(setting.reads, setting.probe, steer.PROMPT)
    push = steer.Add(site, setting.direction(f"gated {row}"), 0.5 + 0.1 * row, steer.OUTPUT)
    source: Tensor = setting.scale * setting.draw(f"source {row}", lm.d_model)
    return [
        steer.When(read, push, above=0.0),
        steer.MoveAlong(site, setting.manifold, 0.7 + 0.5 * row),
        steer.Add(
            Site(site.layer, "attn_out"),
            setting.direction(f"added {row}"),
            steer.Relative(0.2 + 0.1 * row),
            steer.GENERATED,
        ),
        steer.Patch(Site(site.layer, "mlp_out"), source, scope=steer.span(1, 3)),
        steer.Monitor(steer.Read(later, setting.probe, steer.OUTPUT, reduce="rolling")),
        steer.belief.Control(
            setting.belief,
            later,
            setting.direction(f"believed {row}"),
            -0.4 - 0.1 * row,  # evidence speaks for the concept, so none of it meets the target
            steer.belief.Count(tuple(range(row, lm.registry.layout.d_vocab, 3))),
            steer.belief.outcome([7 + row], [17]),
            steer.OUTPUT,
        ),
        steer.belief.Forecast(
            setting.belief, 1.0 + row, outcome=steer.belief.outcome([9 + row], [17])
        ),
    ]
