"""Scores against scikit-learn, with weights; splits; and what leaks."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, roc_auc_score

import probes
from probes import ProbeError
from probes.scores import resampled, weighted_auroc


def data(n: int = 120, shift: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    draw = torch.Generator().manual_seed(seed)
    y = [k % 2 for k in range(n)]
    x = torch.randn(n, 6, generator=draw, dtype=torch.float64)
    return x + shift * torch.tensor(y).double()[:, None] * torch.tensor([1.0, 0, 0, 0, 0, 0]), y


def test_weighted_areas_are_those_of_scikit_learn_ties_included():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 7, (2, 40), generator=draw).double()
    positive = torch.rand(40, generator=draw) < 0.4
    weights = resampled(40, None, 5, 1)
    got = weighted_auroc(scores, positive, weights)
    for site in range(2):
        for k in range(6):
            expected = roc_auc_score(positive, scores[site], sample_weight=weights[k])
            assert float(got[site, k]) == pytest.approx(expected, abs=1e-12)


def test_scores_are_those_of_scikit_learn_on_samples_that_were_held_out():
    x, y = data()
    train, test = probes.split(y)
    probe = probes.fit_logistic(x[train], [y[k] for k in train])
    truth = [y[k] for k in test]
    found = probes.score_probe(probe, x[test], truth)
    p = probe.scores(x[test]).numpy()
    values = {name: found[name] for name in found.numbers}
    assert all(isinstance(one, probes.Score) for one in values.values())
    auroc, brier, accuracy = (found.numbers[n] for n in ("auroc", "brier", "accuracy"))
    assert isinstance(auroc, probes.Score)
    assert isinstance(brier, probes.Score)
    assert isinstance(accuracy, probes.Score)
    assert auroc.value == pytest.approx(roc_auc_score(truth, p))
    assert brier.value == pytest.approx(brier_score_loss(truth, p))
    assert accuracy.value == pytest.approx(np.mean((p > 0.5) == truth))
    assert auroc.lo < auroc.value < auroc.hi


def test_intervals_hold_the_truth_as_often_as_they_say():
    # Two normals one deviation apart: the area is Phi(1 / sqrt 2) = .7602.
    inside = 0
    for seed in range(60):
        x, y = data(400, seed=seed)
        probe = probes.LinearProbe(torch.eye(6)[0].double(), torch.tensor(-0.5).double(),
                                   "logistic", (0, 1))  # fmt: skip
        found = probes.score_probe(probe, x, y, n_resamples=300)["auroc"]
        assert isinstance(found, probes.Score)
        inside += found.lo <= 0.7602 <= found.hi
    assert inside >= 52


def test_calibration_is_zero_where_scores_are_the_shares_and_large_where_they_are_not():
    draw = torch.Generator().manual_seed(0)
    p = torch.rand(4000, generator=draw, dtype=torch.float64)
    y = (torch.rand(4000, generator=draw) < p).long().tolist()
    logit = (p / (1 - p)).log()[:, None]
    one = torch.ones(1, dtype=torch.float64)
    honest = probes.LinearProbe(one, torch.zeros((), dtype=torch.float64), "logistic", (0, 1))
    boastful = probes.LinearProbe(4 * one, torch.zeros((), dtype=torch.float64), "logistic", (0, 1))
    small, large = (
        probes.score_probe(probe, logit, y, n_resamples=50)["calibration_error"]
        for probe in (honest, boastful)
    )
    assert isinstance(small, probes.Score)
    assert isinstance(large, probes.Score)
    assert small.value < 0.03
    assert large.value > 0.1


def test_groups_are_drawn_as_wholes():
    weights = resampled(6, ["a", "a", "b", "b", "c", "c"], 50, 0)
    assert torch.equal(weights[:, 0], weights[:, 1])
    assert bool((weights.sum(1) == 6).all())
    x, y = data(40)
    many, labels = x.repeat_interleave(10, 0), [k for k in y for _ in range(10)]
    groups = [k for k in range(40) for _ in range(10)]
    probe = probes.fit_logistic(x, y)
    honest = probes.score_probe(probe, many, labels, groups=groups)["auroc"]
    naive = probes.score_probe(probe, many, labels)["auroc"]
    assert isinstance(honest, probes.Score)
    assert isinstance(naive, probes.Score)
    assert honest.hi - honest.lo > 2 * (naive.hi - naive.lo)


def test_a_stack_is_scored_site_by_site():
    x, y = data()
    stack = torch.stack([x, x.flip(1)])
    probe = probes.fit_logistic(stack, y)
    found = probes.score_probe(probe, stack, y, n_resamples=20)["auroc"]
    assert isinstance(found, list)
    for k in range(2):
        one = probes.score_probe(probe[k], stack[k], y, n_resamples=20)["auroc"]
        assert isinstance(one, probes.Score)
        assert found[k].value == pytest.approx(one.value)


def test_a_group_on_both_sides_is_refused_and_named():
    with pytest.raises(ProbeError, match="1 groups are on both sides of the split: 'b'"):
        probes.require_disjoint(["a", "b"], ["b", "c"])
    probes.require_disjoint(["a", "b"], ["c"])
    y = [0, 1] * 10
    groups = [k // 4 for k in range(20)]
    train, test = probes.split(y, groups=groups)
    probes.require_disjoint([groups[k] for k in train], [groups[k] for k in test])
    with pytest.raises(ProbeError, match="to be held out"):
        probes.split([0, 0, 1, 1])


def test_folds_are_stratified_or_keep_groups():
    y = [0] * 12 + [1] * 8
    part = probes.folds(y, 4)
    for fold in range(4):
        inside = [y[k] for k in (part == fold).nonzero()[:, 0]]
        assert (inside.count(0), inside.count(1)) == (3, 2)
    groups = [k // 2 for k in range(20)]
    part = probes.folds(y, 5, groups=groups)
    assert all(len({int(part[2 * k]), int(part[2 * k + 1])}) == 1 for k in range(10))
    with pytest.raises(ProbeError, match="Give 2 to 8"):
        probes.folds(y, 9)


def test_a_probe_that_remembers_types_has_no_selectivity_and_one_that_reads_has():
    draw = torch.Generator().manual_seed(0)
    types = [k % 20 for k in range(200)]
    codes = torch.randn(20, 40, generator=draw, dtype=torch.float64)
    noise = 0.1 * torch.randn(200, 40, generator=draw, dtype=torch.float64)
    y = [int(t < 10) for t in types]
    fit = partial(probes.fit_logistic, l2=0.01)
    # Twenty types in forty dimensions: any labelling of them can be learned.
    remembered = probes.selectivity(fit, codes[types] + noise, y, types)
    assert remembered.task[0].value > 0.95
    assert abs(remembered.selectivity[0].value) < 0.1
    read = torch.tensor(y).double()[:, None] * torch.ones(3) + 0.1 * noise[:, :3]
    reads = probes.selectivity(fit, read, y, types)
    assert reads.selectivity[0].value > 0.25
    with pytest.raises(ProbeError, match="type of its own"):
        probes.selectivity(fit, read, y, list(range(200)))


def test_control_labels_are_one_for_each_type_with_the_classes_frequencies():
    types = [k % 40 for k in range(400)]
    y = [int(t < 10) for t in types]
    labels = probes.control_labels(types, y, seed=3)
    assert all(len({labels[k] for k in range(400) if types[k] == t}) == 1 for t in range(40))
    assert labels.count(1) == 100
    assert labels != probes.control_labels(types, y, seed=4)


def test_labels_that_are_in_the_states_are_short_and_random_ones_are_not():
    x, y = data(400, shift=6.0)
    length = probes.description_length(probes.fit_logistic, x, y)
    assert length.uniform_bits == 400
    assert length.compression[0] > 5
    draw = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 2, (400,), generator=draw).tolist()
    random = probes.description_length(partial(probes.fit_logistic, l2=100.0), x, noise)
    assert random.bits[0] == pytest.approx(400, rel=0.05)
    # Coded by hand: one portion uniformly, the other by a probe of the first.
    half = probes.description_length(probes.fit_logistic, x, y, portions=(0.5, 1.0), seed=2)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(2))
    first, second = order[:200], order[200:]
    probe = probes.fit_logistic(x[first], [y[k] for k in first])
    p = probe.scores(x[second])
    truth = torch.tensor(y)[second].double()
    coded = -(truth * p.log2() + (1 - truth) * (1 - p).log2()).sum()
    assert half.bits[0] == pytest.approx(200 + float(coded), rel=1e-9)
    with pytest.raises(ProbeError, match="the last is all of them"):
        probes.description_length(probes.fit_logistic, x, y, portions=(0.5, 0.9))


def test_a_layer_curve_finds_where_a_concept_appears():
    x, y = data(400, shift=0.0)
    truth = torch.tensor(y).double()[:, None]
    axis = torch.eye(6, dtype=torch.float64)[0]
    stack = torch.stack([x + s * truth * axis for s in (0.0, 0.0, 0.6, 3.0, 3.2, 3.0)])
    curve = probes.layer_curve(probes.fit_logistic, stack, y)
    assert curve.depth == 3
    assert curve.peak in (3, 4, 5)
    assert curve.depth_interval[0] >= 2
    assert abs(curve.scores[0].value - 0.5) < 0.2
    assert curve.scores[3].lo > curve.scores[2].hi
    with pytest.raises(ProbeError, match="several sites"):
        probes.layer_curve(probes.fit_logistic, x, y)


def test_probes_carry_over_where_the_direction_is_the_same():
    first, y = data(300, shift=3.0)
    second, _ = data(300, shift=3.0, seed=1)
    turned, _ = data(300, shift=-3.0, seed=2)
    sets = {"a": (first, y), "b": (second, y), "turned": (turned, y)}
    found = probes.transfer(probes.fit_logistic, sets, n_resamples=100)
    assert float(found.auroc[0, 1]) > 0.9
    assert float(found.auroc[0, 2]) < 0.1
    assert float(found.cosine[0, 1]) > 0.8
    assert float(found.cosine[0, 2]) < -0.8
    groups = {"a": [k // 10 for k in range(300)], "b": [k // 10 for k in range(300)],
              "turned": [k // 10 for k in range(300)]}  # fmt: skip
    same = probes.transfer(probes.fit_logistic, sets, groups=groups, n_resamples=10)
    assert same.names == ("a", "b", "turned")
    leaking = groups | {"b": [(k + 150) % 300 // 10 for k in range(300)]}
    with pytest.raises(ProbeError, match="on both sides"):
        probes.transfer(probes.fit_logistic, sets, groups=leaking, n_resamples=10, seed=1)


def test_leaks_are_seen_in_tensors_too():
    with pytest.raises(ProbeError, match="on both sides"):
        probes.require_disjoint(torch.tensor([1, 2]), torch.tensor([2, 3]))
    x, y = data(300)
    groups = torch.arange(300) // 10
    sets = {"a": (x, y), "b": (x + 1, y)}
    moved = {"a": groups, "b": (groups + 15) % 30}
    with pytest.raises(ProbeError, match="on both sides"):
        probes.transfer(probes.fit_logistic, sets, groups=moved, n_resamples=5, seed=1)
    with pytest.raises(ProbeError, match="has no groups while others have"):
        probes.transfer(probes.fit_logistic, sets, groups={"a": groups}, n_resamples=5)


def test_control_labels_keep_every_class_and_count_samples_not_types():
    y = [0] * 90 + [1] * 10
    rare = probes.control_labels([k % 4 for k in range(100)], y)
    assert set(rare) == {0, 1}
    # One type has half of all samples: the shares of samples are kept as far as that allows.
    types = [0] * 100 + [1 + k % 50 for k in range(100)]
    half = [k % 2 for k in range(200)]
    for seed in range(5):
        share = sum(int(k) for k in probes.control_labels(types, half, seed=seed)) / 200
        assert 0.4 <= share <= 0.6
    with pytest.raises(ProbeError, match="cannot have 2 labels"):
        probes.control_labels(["a"] * 10, [0, 1] * 5)


def test_what_is_no_probability_is_not_scored_as_one():
    x, y = data()
    probe = probes.LinearProbe(torch.eye(6)[0].double() / 100, torch.tensor(0.5).double(),
                               "identity", (0, 1))  # fmt: skip
    assert "brier" not in probes.score_probe(probe, x, y, n_resamples=5).numbers

    def contrast(x: torch.Tensor, y: list[int]) -> probes.LinearProbe:
        positive = torch.tensor(y).bool()
        return probes.fit_mean_difference(x[positive], x[~positive])

    with pytest.raises(ProbeError, match="distances, not log-odds"):
        probes.description_length(contrast, x, y)
    with pytest.raises(ProbeError, match="nothing to tell it from"):
        probes.score_probe(probe, x[:10], [1] * 10)
    with pytest.raises(ProbeError, match="Each is a share above 0"):
        probes.description_length(probes.fit_logistic, x, y, portions=(-0.5, 0.5, 1.0))
    with pytest.raises(ProbeError, match="0 folds"):
        probes.folds(y, 0)


def test_where_nothing_is_above_chance_there_is_no_depth():
    from probes.layers import _depth  # pyright: ignore[reportPrivateUsage]

    assert _depth(torch.tensor([[0.3, 0.6], [0.4, 0.9]]), 0.5).tolist() == [2, 1]
