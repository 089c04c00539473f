"""Held-out text: likelihoods against the model's own loss, divergences against its logits."""

import numpy as np
import pytest
import torch

import steer
from steer.evals.measuring.texts import PROMPT_TOKENS, clustered, measure_texts
from tests.steer.evals.measuring.conftest import add


def test_likelihood_and_kl_are_those_of_whole_passes(lm: steer.LM, texts: list[str]):
    arms = {"plan": add(lm), "out": add(lm, 1, scope=steer.OUTPUT)}
    found = measure_texts(lm, texts, arms)
    assert found.arms == ("base", "plan", "out")
    moved: dict[str, list[float]] = {name: [] for name in arms}
    for at, text in enumerate(texts):
        ids = torch.tensor([lm.rows([text])[0][:96]])
        n = min(PROMPT_TOKENS, ids.shape[1] - 1)
        known = {}
        for name, plan in (("base", []), *arms.items()):
            with torch.no_grad():
                if not plan:
                    logits = lm.model(ids).logits[0]
                else:
                    with lm.attached(plan) as run:
                        run.prompt([n])
                        logits = lm.model(ids, use_cache=False).logits[0]
            known[name] = logits.float().log_softmax(-1)
            own = known[name][n - 1 : -1].gather(1, ids[0, n:, None])
            assert found.nats[found.arms.index(name), at] == pytest.approx(
                -float(own.mean()), abs=1e-4
            )
        base = known["base"]
        for name, first in (("plan", 1), ("out", n - 1)):  # from the first token that can move
            kl = (base.exp() * (base - known[name])).sum(-1)[first:]
            moved[name] += kl.tolist()
    for name, wanted in moved.items():
        kept = np.sort(found.kl(name))
        kept = kept[kept > 0] if name == "out" else kept
        np.testing.assert_allclose(np.sort(kept)[-50:], np.sort(wanted)[-50:], atol=1e-4)


def test_intervals_resample_passages(lm: steer.LM, texts: list[str]):
    found = measure_texts(lm, texts, {"plan": add(lm)})
    mean = clustered(found, "plan")
    high = clustered(found, "plan", quantile=0.95)
    assert mean.value == pytest.approx(found.kl("plan").mean())
    assert high.value == pytest.approx(np.quantile(found.kl("plan"), 0.95))
    for one in (mean, high):
        assert one.lo is not None
        assert one.hi is not None
        assert one.value is not None
        assert one.lo <= one.value <= one.hi
    assert clustered(found, "plan") == mean
