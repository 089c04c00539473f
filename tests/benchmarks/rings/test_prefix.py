import pytest
import torch

import steer
from benchmarks.rings.prefix import last_token, run_prefixes

ROWS = [[1, 5, 9, 3, 7], [1, 6, 2, 4, 8, 3, 2], [1, 4, 4]]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3", "tiny-gpt2", "tiny-qwen2"])
def test_a_write_at_the_last_token_of_shared_prefixes_equals_whole_runs(name):
    lm = steer.load(name)
    site = steer.Site(1, "resid_post")
    cases = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    source = torch.randn(len(cases), lm.d_model, generator=torch.Generator().manual_seed(0))
    shared = last_token(
        lm,
        run_prefixes(lm, ROWS),
        cases,
        lambda rows: [steer.Patch(site, source[rows], scope=steer.LAST)],
        lambda logits, _: logits,
    )
    plan = [steer.Patch(site, source, scope=steer.LAST)]
    whole = lm.logits([ROWS[i] for i in cases.tolist()], plan)
    # Batches of other shapes differ in the last bits of fp32.
    torch.testing.assert_close(shared, whole, rtol=1e-4, atol=1e-4)


def _tensors(cache):
    both = [(layer.keys, layer.values) for layer in cache.layers]
    return [tensor.clone() for pair in both for tensor in pair]


def test_running_rows_leaves_the_shared_cache_as_it_was():
    lm = steer.load("tiny-llama")
    prefixes = run_prefixes(lm, ROWS)
    before = _tensors(prefixes.cache)
    site = steer.Site(0, "resid_post")
    for _ in range(2):
        last_token(
            lm,
            prefixes,
            torch.tensor([0, 0, 1]),
            lambda rows: [steer.Patch(site, torch.zeros(len(rows), lm.d_model), scope=steer.LAST)],
            lambda logits, _: logits,
        )
    after = _tensors(prefixes.cache)
    assert len(after) == 2 * lm.n_layers
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_rows_of_one_path_stay_in_one_pass():
    lm = steer.load("tiny-llama")
    site = steer.Site(0, "resid_post")
    seen = []

    def read_out(logits, rows):
        seen.append(rows.tolist())
        return logits[:, 0]

    n = 13 * 50
    last_token(
        lm,
        run_prefixes(lm, ROWS),
        torch.zeros(n, dtype=torch.long),
        lambda rows: [steer.Patch(site, torch.zeros(len(rows), lm.d_model), scope=steer.LAST)],
        read_out,
        together=13,
    )
    assert len(seen) == 2
    assert all(len(rows) % 13 == 0 for rows in seen)
    assert [row for rows in seen for row in rows] == list(range(n))
