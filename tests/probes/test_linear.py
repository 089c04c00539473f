"""LinearProbe: what it reads, against plain matrix products; its errors; its identity."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from probes.errors import ProbeError
from probes.linear import LinearProbe, Link

D = 6


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def binary(link: Link = "identity", **changes):
    return LinearProbe(randn(D), torch.tensor(0.5), link, (False, True), **changes)


def many(n_classes=3):
    return LinearProbe(randn(n_classes, D), randn(n_classes), "logistic", tuple("abc")[:n_classes])


def stacked(n_sites=4):
    return LinearProbe(randn(n_sites, D), randn(n_sites, seed=1), "identity", (False, True))


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 0), (2, 3, 4)])
def test_scores_have_the_shape_of_the_input_without_its_width(shape):
    x = randn(*shape, D)
    probe = binary()
    expected = (x.double() @ probe.weight.double() + 0.5).float()
    assert probe.scores(x).shape == shape
    # fp32 sums of 6 products, in another order.
    torch.testing.assert_close(probe.scores(x), expected, rtol=1e-6, atol=1e-6)


def test_the_logistic_link_gives_probabilities_of_the_positive_class():
    x = randn(5, D)
    probe = binary("logistic")
    odds = torch.exp(probe.logits(x))
    torch.testing.assert_close(probe.scores(x), odds / (1 + odds), rtol=1e-6, atol=1e-7)


def test_many_classes_give_probabilities_along_a_last_axis():
    x = randn(2, 5, D)
    scores = many().scores(x)
    assert scores.shape == (2, 5, 3)
    torch.testing.assert_close(scores.sum(-1), torch.ones(2, 5))
    assert torch.equal(many().predict(x), (x @ many().weight.mT + many().bias).argmax(-1))


@pytest.mark.parametrize("shape", [(5,), (2, 3), ()])
def test_a_stack_reads_as_its_probes_one_by_one(shape):
    probe = stacked()
    x = randn(4, *shape, D, seed=3)
    singly = torch.stack([probe[i].scores(x[i]) for i in range(4)])
    torch.testing.assert_close(probe.scores(x), singly, rtol=1e-6, atol=1e-6)


def test_a_stack_of_many_classes_reads_as_its_probes_one_by_one():
    probe = LinearProbe(randn(4, 3, D), randn(4, 3), "logistic", tuple("abc"))
    x = randn(4, 2, 5, D, seed=3)
    singly = torch.stack([probe[i].scores(x[i]) for i in range(4)])
    assert len(probe) == probe.n_sites == 4
    torch.testing.assert_close(probe.scores(x), singly, rtol=1e-6, atol=1e-6)


def test_a_stack_of_two_probes_is_not_taken_for_two_classes():
    probe = LinearProbe(randn(2, D), randn(2), "identity", (False, True))
    assert probe.n_sites == 2
    assert probe.direction.shape == (2, D)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_read_in_float32(dtype):
    x = randn(7, D, dtype=dtype)
    scores = binary().scores(x)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, binary().scores(x.float()))


def test_float64_is_kept():
    probe = LinearProbe(randn(D).double(), torch.tensor(0.5).double())
    assert probe.scores(randn(3, D)).dtype == torch.float64
    assert binary().scores(randn(3, D).double()).dtype == torch.float64


def test_the_direction_has_norm_one_and_points_to_the_positive_class():
    probe = binary()
    assert math.isclose(float(probe.direction.norm()), 1, abs_tol=1e-6)
    x = randn(D, seed=5)
    assert float(probe.scores(x + probe.direction)) > float(probe.scores(x))


def test_toward_a_class_is_its_own_row():
    probe = many().toward("b")
    assert torch.equal(probe.weight, many().weight[1])
    # fp32 sums of 6 products, in another order.
    expected = many().logits(randn(4, D))[:, 1]
    torch.testing.assert_close(probe.scores(randn(4, D)), expected, rtol=1e-6, atol=1e-6)


def test_toward_the_first_of_two_classes_turns_the_sign():
    turned = binary("logistic").toward(False)
    assert torch.equal(turned.direction, -binary().direction)
    x = randn(5, D)
    torch.testing.assert_close(turned.scores(x), 1 - binary("logistic").scores(x))
    assert turned.classes == (True, False)


def test_a_probe_is_frozen_and_keeps_no_hold_on_its_origin():
    origin = {"site": "blocks.3.resid_post", "model": {"id": "m"}}
    probe = binary(origin=origin)
    origin["model"]["id"] = "other"
    assert probe.origin == {"site": "blocks.3.resid_post", "model": {"id": "m"}}
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(probe, "bias", torch.tensor(1.0))  # noqa: B010 - as a user might


@pytest.mark.parametrize(
    "probe",
    [
        binary("logistic", origin={"site": "embed"}, diagnostics={"seed": 0, "auroc": 0.5}),
        many(),
        stacked(),
        LinearProbe(randn(D), torch.tensor(0.0)),
    ],
)
def test_the_spec_round_trip_keeps_digest_and_scores(probe):
    back = LinearProbe.from_spec(probe.spec())
    assert back.digest == probe.digest
    assert back.classes == probe.classes
    x = randn(4, D)
    assert torch.equal(back.scores(x), probe.scores(x))


def test_every_part_of_a_probe_enters_the_digest():
    others = [
        dataclasses.replace(binary(), weight=randn(D, seed=9)),
        dataclasses.replace(binary(), bias=torch.tensor(0.25)),
        dataclasses.replace(binary(), classes=("no", "yes")),
        dataclasses.replace(binary(), origin={"site": "embed"}),
        binary("logistic"),
    ]
    assert len({probe.digest for probe in [binary(), *others]}) == 6


def test_numpy_labels_and_diagnostics_become_plain():
    probe = LinearProbe(
        randn(D),
        torch.tensor(0.0),
        classes=(np.float64(0), np.str_("b")),
        diagnostics={"n": np.float32(0.5)},
    )
    assert [type(label) for label in probe.classes or ()] == [float, str]
    assert probe.diagnostics == {"n": 0.5}


def test_repr_says_what_it_reads_and_not_the_numbers():
    probe = binary(
        "logistic", origin={"site": "blocks.3.resid_post"}, diagnostics={"held_out_auroc": 0.98765}
    )
    assert repr(probe) == (
        "LinearProbe(True over False, d=6, logistic, held_out_auroc=0.988, "
        "site=blocks.3.resid_post)"
    )
    assert "blocks.3.resid_post" in probe._repr_html_()
    assert "unverified" in binary()._repr_html_()


def test_labels_cannot_put_markup_into_a_notebook():
    probe = LinearProbe(randn(D), torch.tensor(0.0), classes=("<b>", "x"))
    assert "<b>" not in probe._repr_html_()


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (torch.ones(3, D + 1), r"\[3, 7\].*reads 6"),
        (torch.ones(3, D, dtype=torch.long), "floating-point"),
        (torch.tensor(1.0), "reads 6"),
        (torch.ones(D, device="meta"), r"on meta and the probe on cpu.*probe\.to"),
    ],
)
def test_inputs_that_it_cannot_read_are_refused(x, match):
    with pytest.raises(ProbeError, match=match):
        binary().scores(x)


def test_a_stack_refuses_another_number_of_sites():
    with pytest.raises(ProbeError, match="stack of 4 probes"):
        stacked().scores(torch.ones(3, 5, D))
    with pytest.raises(ProbeError, match="stack of 4 probes"):
        stacked().scores(torch.ones(D))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"weight": torch.full((D,), math.nan)}, "not finite"),
        ({"bias": torch.tensor(math.inf)}, "not finite"),
        ({"bias": torch.zeros(2)}, "one bias"),
        ({"classes": ("a", "b", "c")}, "does not fit 3 classes"),
        ({"weight": torch.ones(2, 3, D), "bias": torch.ones(2, 3)}, "one site axis"),
        ({"origin": {"model": object()}}, "origin cannot be written as JSON"),
        ({"diagnostics": {"score": math.nan}}, "diagnostics cannot be written"),
    ],
)
def test_a_malformed_probe_is_refused(changes, match):
    with pytest.raises(ProbeError, match=match):
        dataclasses.replace(binary(), **changes)


def test_questions_without_an_answer_say_what_to_ask_instead():
    with pytest.raises(ProbeError, match=r"probe\.toward\('c'\)"):
        _ = many().direction
    with pytest.raises(ProbeError, match="points nowhere"):
        _ = LinearProbe(torch.zeros(D), torch.tensor(0.0)).direction
    with pytest.raises(ProbeError, match="'z' is not a class"):
        many().toward("z")
    with pytest.raises(ProbeError, match="single site"):
        binary()[0]
    with pytest.raises(ProbeError, match=r"Use scores\(x\)"):
        LinearProbe(randn(D), torch.tensor(0.0)).predict(randn(2, D))
    with pytest.raises(ProbeError, match="Use fit_mean_difference"):
        _ = binary().separation


@pytest.mark.parametrize(
    "change", [{"kind": "probes.Other"}, {"version": 2}, {"colour": 1}, {"link": "probit"}]
)
def test_a_spec_of_something_else_is_refused(change):
    with pytest.raises(ProbeError, match=r"this is probes\.LinearProbe|names no score"):
        LinearProbe.from_spec({**binary().spec(), **change})


@pytest.mark.gpu
def test_a_probe_on_the_gpu_has_the_same_digest_and_scores():
    probe = stacked()
    x = randn(4, 5, D, dtype=torch.bfloat16)
    there = probe.to("cuda")
    assert there.digest == probe.digest
    # fp32 sums in another order.
    torch.testing.assert_close(there.scores(x.cuda()).cpu(), probe.scores(x), rtol=1e-5, atol=1e-5)
