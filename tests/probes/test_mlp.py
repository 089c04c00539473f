"""The probe with a hidden layer: what it can and linear probes cannot, and its laws."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import log_loss

import probes
from probes import MLPProbe, ProbeError, fit_mlp


def crossed(n=240, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    corner = torch.randint(0, 2, (n, 2), generator=generator) * 2 - 1
    x[:, :2] = 0.3 * x[:, :2] + corner
    return x, (corner[:, 0] != corner[:, 1]).long()


def linear(n=200, d=8, n_classes=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % n_classes
    means = torch.randn(n_classes, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + means[y], y


def told(probe, key) -> float:
    value = probe.diagnostics[key]
    assert isinstance(value, float)
    return value


def test_exclusive_or_is_read_by_the_hidden_layer_and_not_by_a_line():
    x, y = crossed()
    assert told(probes.fit_logistic(x, y), "held_out_accuracy") < 0.7
    assert told(fit_mlp(x, y), "held_out_auroc") > 0.95
    assert told(fit_mlp(x, y), "held_out_accuracy") > 0.95


def test_on_linear_data_it_is_as_good_as_the_linear_probe():
    x, y = linear()
    line = told(probes.fit_logistic(x, y), "held_out_auroc")
    assert abs(told(fit_mlp(x, y), "held_out_auroc") - line) < 0.03


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_fit_has_settled_and_more_steps_lower_the_loss_no_further(n_classes):
    x, y = linear(n_classes=n_classes)
    short, long = (fit_mlp(x, y, n_iterations=steps) for steps in (400, 1200))

    def objective(probe):
        scale = x.std(0, correction=0)
        weights = (probe.weight_in * scale).square().sum() + probe.weight_out.square().sum()
        return len(y) * log_loss(y.numpy(), probe.scores(x).numpy()) + float(weights) / 2

    assert told(short, "relative_gradient") < 0.05
    assert objective(short) < 1.01 * objective(long)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_stack_is_fitted_as_its_sites_one_by_one(n_classes):
    x, y = linear(n=60, n_classes=n_classes)
    sites = torch.stack([x, x.flip(1) ** 3])
    stack = fit_mlp(sites, y, n_iterations=50)
    for i in range(2):
        single = fit_mlp(sites[i], y, n_iterations=50)
        torch.testing.assert_close(stack[i].scores(sites[i]), single.scores(sites[i]))
        torch.testing.assert_close(stack.scores(sites)[i], single.scores(sites[i]))


def test_swapped_labels_turn_the_sign_of_the_logits():
    x, y = linear(60)
    torch.testing.assert_close(fit_mlp(x, 1 - y).logits(x), -fit_mlp(x, y).logits(x))


def test_the_logits_are_those_of_the_formula():
    x, y = linear(40, n_classes=3)
    probe = fit_mlp(x, y, hidden=5, n_iterations=10)
    rows = [
        probe.weight_out @ torch.tanh(probe.weight_in @ row + probe.bias_in) + probe.bias_out
        for row in x
    ]
    torch.testing.assert_close(probe.logits(x), torch.stack(rows))
    assert torch.equal(probe.predict(x), torch.stack(rows).argmax(-1))


def test_the_spec_rebuilds_it_and_the_digest_sees_the_weights():
    x, y = linear(40)
    probe = fit_mlp(x, y, n_iterations=10, origin={"site": "embed"})
    again = MLPProbe.from_spec(probe.spec())
    assert again.digest == probe.digest
    assert torch.equal(again.scores(x), probe.scores(x))
    assert replace(probe, bias_out=probe.bias_out + 1).digest != probe.digest
    assert "MLPProbe(0, 1, hidden=32, d=8" in repr(probe)
    with pytest.raises(ProbeError, match="Load it with the one that saved it"):
        MLPProbe.from_spec({**probe.spec(), "kind": "probes.LinearProbe"})


def test_what_cannot_be_fitted_or_read_is_refused():
    x, y = linear(40)
    with pytest.raises(ProbeError, match="One class only"):
        fit_mlp(x, torch.zeros(40))
    with pytest.raises(ProbeError, match="All 8 features are constant"):
        fit_mlp(torch.full((40, 8), 0.1), y)
    with pytest.raises(ProbeError, match="hidden is 0"):
        fit_mlp(x, y, hidden=0)
    probe = fit_mlp(torch.stack([x, x]), y, n_iterations=5)
    with pytest.raises(ProbeError, match="reads 8"):
        probe.scores(x[:, :3])
    with pytest.raises(ProbeError, match="stack of 2 probes"):
        probe.scores(x)
    with pytest.raises(ProbeError, match="single site"):
        probe[0][0]
