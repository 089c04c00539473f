"""What all prompts begin with is run once, and nothing tells: not texts, not receipts."""

import pytest
import torch

import steer
from steer.evals.batching import Batcher, sharing
from steer.evals.batching.asked import Asked, Sampling, Shape
from steer.interventions.plans import as_items

BEGINNING = list(range(5, 45))
ROWS = [BEGINNING + [60 + at] * (at + 1) for at in range(6)]
SITE = steer.Site(1)


def vector(lm: steer.LM, seed: int = 0) -> torch.Tensor:
    return torch.randn(lm.d_model, generator=torch.Generator().manual_seed(seed))


class Sum:
    """A probe: the sum of the entries."""

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum over the last axis."""
        return x.float().sum(-1)


def late(lm: steer.LM) -> list[list]:
    """Return plans that look at nothing of the beginning."""
    v = vector(lm)
    gate = steer.When(
        steer.Read(SITE, Sum(), scope=steer.LAST), steer.Add(SITE, v, 2.0, steer.OUTPUT), -1e9
    )
    return [
        [],
        [steer.Add(SITE, v, 3.0, scope=steer.OUTPUT)],
        [steer.Add(SITE, -v, 3.0, scope=steer.at(-1)), steer.Scale(SITE, 0.5, scope=steer.LAST)],
        [gate],
        [steer.Add(SITE, v, 3.0, scope=steer.GENERATED)],
        [steer.Add(SITE, v, 3.0, scope=steer.at(41))],
    ]


def one_more(h: torch.Tensor, step: object) -> torch.Tensor:
    """Return every entry plus one."""
    del step
    return h + 1


EARLY = {
    "every token": lambda v: steer.Add(SITE, v),
    "the first": lambda v: steer.Add(SITE, v, scope=steer.FIRST),
    "one of the beginning": lambda v: steer.Add(SITE, v, scope=steer.at(39)),
    "a gate that reads the prompt": lambda v: steer.When(
        steer.Read(SITE, Sum(), reduce="mean"), steer.Add(SITE, v, scope=steer.GENERATED), 0.0
    ),
    "code that is given whole rows": lambda _: steer.Custom(SITE, one_more, scope=steer.LAST),
    "a monitor": lambda v: steer.Monitor(  # noqa: ARG005
        steer.Read(SITE, Sum(), scope=steer.ALL, reduce="max")
    ),
}


def answered(lm: steer.LM, asked: list[Asked], monkeypatch, shape: Shape | None = None):
    """Return the answers of one batch, and how many tokens each batch shared (None: nothing)."""
    kept = []
    whole = sharing.beginning_of

    def watched(lm: steer.LM, wiring, rows):
        kept.append(whole(lm, wiring, rows))
        return kept[-1]

    monkeypatch.setattr("steer.evals.batching.passing.beginning_of", watched)
    batcher = Batcher(lm, max_rows=8, shape=shape)
    tickets = batcher.submit_all(asked)
    found = [ticket.future.result() for ticket in tickets]
    batcher.close()
    return found, [one and one.n for one in kept]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=5)], ids=str)
def test_answers_are_those_of_generate_in_every_family(any_lm: steer.LM, sampling, monkeypatch):
    plans = late(any_lm)
    asked = [Asked(row, tuple(plan), 6, sampling) for row, plan in zip(ROWS, plans, strict=True)]
    found, shared = answered(any_lm, asked, monkeypatch)
    # A sliding window counts columns: gemma3 does not share.
    assert shared == [None if "gemma3" in any_lm.provenance.name else len(BEGINNING)]
    draws = {"do_sample": True, "seed": 5, "temperature": 0.8, "top_k": 0}
    options = draws if sampling.temperature else {}
    for answer, row, plan in zip(found, ROWS, plans, strict=True):
        alone = any_lm.generate([row], plan or None, max_new_tokens=6, **options)
        assert list(answer.tokens) == alone.tokens[0]
        assert alone.log_probs is not None
        torch.testing.assert_close(
            torch.tensor(answer.log_probs), alone.log_probs[0], rtol=0, atol=5e-5
        )
        assert len(answer.did) == len(as_items(plan)) if plan else not answer.did
        for did, line in zip(answer.did, alone.receipt.lines, strict=True):
            for name in ("seen", "eligible", "edited"):
                assert did[name] == int(getattr(line, name)[0]), name
            assert did["relative_size"] == pytest.approx(float(line.relative_size[0]), rel=1e-4)


@pytest.mark.parametrize("name", EARLY)
def test_a_plan_that_looks_at_the_beginning_keeps_it_whole(lm: steer.LM, name: str, monkeypatch):
    plan = [EARLY[name](vector(lm)), steer.Add(SITE, vector(lm, 1), scope=steer.OUTPUT)]
    asked = [Asked(row, tuple(plan) if at == 2 else (), 4) for at, row in enumerate(ROWS)]
    found, shared = answered(lm, asked, monkeypatch)
    assert shared == [None]
    alone = lm.generate([ROWS[2]], plan, max_new_tokens=4)
    assert list(found[2].tokens) == alone.tokens[0]


def test_a_fixed_shape_and_a_short_beginning_share_nothing(lm: steer.LM, monkeypatch):
    asked = [Asked(row, (), 2) for row in ROWS]
    assert answered(lm, asked, monkeypatch, Shape(8, 64))[1] == []
    short = [Asked(row[30:], (), 2) for row in ROWS]
    assert answered(lm, short, monkeypatch)[1] == [None]
    assert answered(lm, asked[:1], monkeypatch)[1] == [None]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),  # each keeps one of its own
        ([[1, 2], [1, 2, 3]], 1),
        ([[9], [9, 1]], 0),
        ([[1, 2], [3, 2]], 0),
    ],
)
def test_what_is_common_leaves_each_row_a_token(rows, wanted):
    assert sharing.common(rows) == wanted
