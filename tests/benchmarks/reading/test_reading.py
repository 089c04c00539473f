"""Reading: labelled sets, their controls, and rates of promises, on made-up data."""

import numpy as np
import pytest
import torch

from benchmarks.reading import layers, monitor, sets
from benchmarks.reading.sets import Labelled
from steer import LM


def made(n: int, *, paired: bool) -> Labelled:
    words = ["good", "fine", "nice", "bad", "poor", "grim"]
    texts = [f"text {k // 2 if paired else k} {words[(k % 2) * 3 + k % 3]}" for k in range(n)]
    rows = [[5 + k % 7, 6, 7 + k % 2] for k in range(n)]
    groups = [k // 2 if paired else k for k in range(n)]
    return Labelled(tuple(texts), rows, [k % 2 for k in range(n)], groups)


def test_shuffled_labels_keep_one_of_each_in_a_pair():
    data = made(60, paired=True)
    dealt = layers._shuffled(data, 0)  # pyright: ignore[reportPrivateUsage]
    assert all({dealt[2 * k], dealt[2 * k + 1]} == {0, 1} for k in range(30))
    assert 5 < sum(a != b for a, b in zip(dealt, data.labels, strict=True)) < 55
    single = made(60, paired=False)
    assert sorted(layers._shuffled(single, 0)) == sorted(single.labels)  # pyright: ignore


def test_words_alone_read_what_is_in_the_words_and_nothing_else():
    data = made(120, paired=False)
    assert layers._bag_of_words(data, 0) == 1.0  # pyright: ignore[reportPrivateUsage]
    texts = tuple(text.rsplit(" ", 1)[0] for text in data.texts)
    blind = Labelled(texts, data.rows, data.labels, data.groups)
    assert abs(layers._bag_of_words(blind, 0) - 0.5) < 0.3  # pyright: ignore


def test_everything_is_measured_of_a_set():
    draw = torch.Generator().manual_seed(0)
    data = made(120, paired=True)
    x = torch.randn(3, 120, 12, generator=draw)
    x = torch.cat([x[:1], x[1:] + 3 * torch.tensor(data.labels)[:, None] * torch.eye(12)[0]])
    found = layers._read(x, data, 0)  # pyright: ignore[reportPrivateUsage]
    numbers = layers._numbers("made", found)  # pyright: ignore[reportPrivateUsage]
    assert numbers["made_peak_auroc"].value == pytest.approx(1.0, abs=0.05)
    assert numbers["made_depth"].value == 1
    compression = numbers["made_compression"].value
    assert compression is not None
    assert compression > 1.3


def test_long_texts_go_with_their_group_and_labels_are_balanced(lm: LM):
    some = sets._short(  # pyright: ignore[reportPrivateUsage]
        lm, ["x"] * 39 + ["x " * 400], [0, 1] * 20, [k // 2 for k in range(40)], 100
    )
    assert len(some.rows) == 38
    lopsided = Labelled(("x",) * 30, [[1]] * 30, [0] * 20 + [1] * 10, list(range(30)))
    even = sets._balanced(lopsided, 15)  # pyright: ignore[reportPrivateUsage]
    assert even.labels.count(0) == even.labels.count(1) == 10


def test_a_calibrated_promise_is_broken_seldom_and_a_quantile_often():
    draw = torch.Generator().manual_seed(0)
    each = {
        name: torch.randn(n, generator=draw) + shift
        for name, n, shift in (("benign", 2000, 0.0), ("target", 200, 4.0), ("other kind", 50, 0.0))
    }
    found, _ = monitor._kept(each, np.random.default_rng(0))  # pyright: ignore
    broken, naive = (found[k].value for k in ("promises_broken", "naive_promises_broken"))
    detected = found["detected"].value
    assert broken is not None
    assert naive is not None
    assert detected is not None
    # Splits of one pool of 2,000: the rest is finite too, which adds its own chance.
    assert broken < 0.15
    assert naive > 0.3
    assert detected > 0.9


def test_exact_intervals_of_shares_are_those_of_the_binomial():
    lo, hi = monitor._exact(0, 100)  # pyright: ignore[reportPrivateUsage]
    assert lo == 0.0
    assert hi == pytest.approx(1 - 0.025 ** (1 / 100), rel=1e-6)
