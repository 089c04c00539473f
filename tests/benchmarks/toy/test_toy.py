"""Toy models: the truth in them is there, and the tasks find it (with less training here)."""

import torch

import steer
from benchmarks.toy import dormant, illusion, modular
from benchmarks.toy.words import words
from steer import interchange

SMALL = modular.Recipe(prime=23, width=48, steps=250, batch_size=256)


def test_words_are_one_token_each():
    tokenizer = words(["0", "1", "="])
    assert tokenizer("1 0 =")["input_ids"] == [1, 0, 2]
    assert str(tokenizer.decode([1, 2])).split() == ["1", "="]


def test_every_sum_is_there_once_and_a_trained_model_says_them():
    rows = modular.every_sum(23)
    assert len({tuple(row) for row in rows.tolist()}) == 23 * 23
    assert bool((rows[:, 2] == 23).all())
    lm = modular.trained(SMALL, seed=0)
    assert modular.accuracy(lm, 23) > 0.9
    frequencies = modular.output_frequencies(lm, 23)
    assert frequencies
    # The surgery's answer by other means: without those frequencies the curve has no peak left.
    logits = lm.logits(rows.tolist())[:, :23].double()
    sums = rows[:, :2].sum(1) % 23
    curve = logits.gather(1, (torch.arange(23) + sums[:, None]) % 23).mean(0)
    spectrum = torch.fft.rfft(curve)
    kept = torch.zeros(12, dtype=torch.float64)
    kept = kept.index_fill(0, torch.tensor(list(frequencies)), 1.0)
    rebuilt = torch.fft.irfft(spectrum * kept, n=23)
    assert int(rebuilt.argmax()) == 0


def test_the_sum_is_found_by_alignment_search_and_not_at_random():
    lm = modular.trained(SMALL, seed=1)
    rows = modular.every_sum(23)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    base, source = rows[order[:250]], rows[order[-250:]]
    sums = (source[:, :2].sum(1) % 23).tolist()
    every = interchange.trials(lm, base.tolist(), source.tolist(), sums, among=list(range(23)))
    site = steer.Site(0, "resid_post")
    training = interchange.Training(epochs=12, batch_size=90, learning_rate=0.1)
    found = interchange.fit_das(lm, every[:180], site, dims=10, within=None, training=training)
    beside = interchange.controls(lm, every[180:], found, n_random=5)
    assert beside.found.value > 0.7
    assert beside.random.value < 0.2


def test_the_planted_pathway_is_dormant_until_it_is_patched():
    made = dormant.planted(seed=0)
    assert made.accuracy > 0.98
    states = made.lm.capture(dormant.rows_of(64, 5).tolist(), [dormant.SITE])[dormant.SITE]
    silent = made.direction.nonzero()[:, 0]
    spread = states[:, silent].std(0)
    assert float(spread.min()) == 0.0  # one of the two never fires
    assert float(spread.max()) > 0.0
    down = made.lm.model.get_parameter("model.layers.1.mlp.down_proj.weight")
    assert float(down[:, silent].norm(dim=0).min()) == 0.0  # and nothing reads the other


def test_plain_patching_is_fooled_and_the_checks_say_so():
    seen = illusion._seen(dormant.planted(seed=0), 0)  # pyright: ignore[reportPrivateUsage]
    assert seen.fooled.value > 0.9
    assert seen.planted.illusory
    assert not seen.genuine.illusory
    assert not seen.stream.illusory
