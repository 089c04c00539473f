"""lm-eval's `steered` files, against lm-eval's own SteeredModel on the same weights."""

import pickle
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lm_eval.models.hf_steered import SteeredModel

import steer
from steer.evals import Refused
from steer.evals.harness.files import read_steered, write_steered
from steer.evals.manifest import plan_digest

PROMPT = "the cat sat on the mat and"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-gpt2"])
def lm(request):
    return steer.load(request.param)


@pytest.fixture(scope="module")
def llama():
    return steer.load("tiny-llama")


@pytest.fixture(scope="module")
def theirs(lm, folder):
    def logits(file: Path) -> torch.Tensor:
        made = cast("Any", SteeredModel)(pretrained=str(folder), steer_path=str(file), device="cpu")
        ids = torch.tensor(lm.rows([PROMPT]))
        return made._model_call(ids)[0]

    return logits


def vector(lm, seed: int) -> torch.Tensor:
    return torch.randn(lm.d_model, generator=torch.Generator().manual_seed(seed))


def ours(lm, plan) -> torch.Tensor:
    return lm.logits([PROMPT], plan, scope=steer.ALL)[0]


def entries(lm) -> dict[str, dict[str, object]]:
    block = "layers" if lm.registry.layout.family == "llama" else "h"
    return {
        f"{block}.1": {
            "steering_vector": vector(lm, 0),
            "steering_coefficient": 2.5,
            "action": "add",
            "bias": None,
        },
        f"{block}.2": {
            "steering_vector": 3 * vector(lm, 1),
            "steering_coefficient": 4.0,
            "action": "clamp",
            "bias": vector(lm, 2),
            "head_index": None,
        },
        f"{block}.0.mlp": {"steering_vector": vector(lm, 3), "action": "add"},
    }


def test_a_file_means_to_us_what_it_means_to_lm_eval(lm, theirs, tmp_path):
    file = tmp_path / "s.pt"
    torch.save(entries(lm), file)
    plan = read_steered(lm, file)
    assert [str(item.site) for item in plan] == [
        "blocks.1.resid_post",
        "blocks.2.resid_post",
        "blocks.0.mlp_out",
    ]
    wanted = theirs(file)
    assert (ours(lm, plan) - wanted).abs().max() <= 1e-4
    assert (ours(lm, []) - wanted).abs().max() > 0.1


def test_a_module_that_is_no_site_is_steered_as_a_module(lm, theirs, tmp_path):
    inner = "layers.1.self_attn.q_proj" if "llama" in lm.provenance.name else "h.1.attn.c_attn"
    width = lm.d_model if "llama" in lm.provenance.name else 3 * lm.d_model
    v = torch.randn(width, generator=torch.Generator().manual_seed(5))
    file = tmp_path / "s.pt"
    torch.save({inner: {"steering_vector": v, "steering_coefficient": 3, "action": "add"}}, file)
    plan = read_steered(lm, file)
    assert isinstance(plan[0].site, steer.ModuleSite)
    assert (ours(lm, plan) - theirs(file)).abs().max() <= 1e-4


def test_a_plan_written_for_lm_eval_does_there_what_it_does_here(lm, theirs, tmp_path):
    plan = [
        steer.Add(steer.Site(0), vector(lm, 0), -2.0),
        steer.Clamp(steer.Site(1), vector(lm, 1), 3.0),
        steer.Ablate(steer.Site(2), vector(lm, 2)[None]),
        steer.Add(steer.Site(2, "mlp_out"), vector(lm, 3), 0.5),
        steer.Add(steer.Site.ln_final(), vector(lm, 4), 1.0),
    ]
    file = write_steered(lm, plan, tmp_path / "s.pt")
    assert (ours(lm, plan) - theirs(file)).abs().max() <= 1e-4
    again = read_steered(lm, file)
    assert (ours(lm, again) - ours(lm, plan)).abs().max() <= 1e-5
    adds = [plan[0], plan[3], plan[4]]
    same = read_steered(lm, write_steered(lm, adds, tmp_path / "a.pt"))
    assert plan_digest(same) == plan_digest(adds)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(llama, tmp_path):
    told, file = tmp_path / "told", tmp_path / "s.pt"

    class Evil:
        def __reduce__(self):
            return Path.touch, (told,)

    torch.save({"layers.1": Evil()}, file)
    for data in (file.read_bytes(), pickle.dumps(Evil()), b"no pickle at all", b""):
        file.write_bytes(data)
        with pytest.raises(Refused, match="could not be read as plain tensors") as refusal:
            read_steered(llama, file)
        assert refusal.value.reason == "bad_plan"
    assert not told.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head_index": 1}, "asks for the head 1"),
        ({"action": "scale"}, "its action is 'scale'"),
        ({"bias": torch.ones(64)}, "bias, which lm-eval allows for clamp alone"),
        ({"steering_vector": torch.ones(2, 64)}, r"is \(2, 64\), not one vector"),
        ({"steering_vector": None}, "NoneType, not one vector"),
        ({"steering_vector": torch.full((64,), float("nan"))}, "not finite"),
        ({"steering_coefficient": "2"}, "not a number"),
        ({"coefficient": 2.0}, "the key 'coefficient'"),
    ],
)
def test_an_entry_that_cannot_mean_what_it_says_is_refused(llama, tmp_path, change, said):
    entry = {"steering_vector": torch.ones(64), "action": "add"} | change
    file = tmp_path / "s.pt"
    torch.save({"layers.1": entry}, file)
    with pytest.raises(Refused, match=said) as refusal:
        read_steered(llama, file)
    assert refusal.value.reason == "bad_plan"
    assert "layers.1" in str(refusal.value)


def test_unknown_modules_and_other_files_are_refused(llama, tmp_path):
    file = tmp_path / "s.pt"
    torch.save({"layer.1": {"steering_vector": torch.ones(64), "action": "add"}}, file)
    with pytest.raises(Refused, match=r"no module model\.layer\.1"):
        read_steered(llama, file)
    torch.save([torch.ones(3)], file)
    with pytest.raises(Refused, match="holds a list"):
        read_steered(llama, file)
    with pytest.raises(Refused, match="sparse autoencoders"):
        read_steered(llama, tmp_path / "s.csv")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (steer.Add(steer.Site(1), torch.ones(64), scope=steer.OUTPUT), "at every token"),
        (steer.Add(steer.Site(1), torch.ones(64), steer.Relative(0.3)), "one number"),
        (steer.Add(steer.Site(1), torch.ones(64), torch.ones(2)), "one number"),
        (steer.Add(steer.Site(1, "resid_pre"), torch.ones(64)), "output of a module"),
        (steer.Add(steer.Site(1, "z", 2), torch.ones(16)), "output of a module"),
        (steer.Add(steer.Site.logits(), torch.ones(9)), "output of a module"),
        (steer.Clamp(steer.Site(1), torch.ones(64), 2.0, 0.5), "strength 1"),
        (steer.Clamp(steer.Site(1), torch.ones(64), torch.ones(2)), "one target"),
        (steer.Ablate(steer.Site(1), torch.eye(64)[:2]), "it has 2"),
        (steer.Scale(steer.Site(1), 0.5), "no Scale"),
    ],
)
def test_what_the_format_cannot_say_is_refused_by_name(llama, tmp_path, item, said):
    with pytest.raises(Refused, match=said) as refusal:
        write_steered(llama, [item], tmp_path / "s.pt")
    assert type(item).__name__ in str(refusal.value)
    assert not (tmp_path / "s.pt").exists()


def test_two_actions_at_one_module_and_no_action_are_refused(llama, tmp_path):
    one = steer.Add(steer.Site(1), torch.ones(64))
    with pytest.raises(Refused, match="one action for each module"):
        write_steered(llama, [one, one], tmp_path / "s.pt")
    with pytest.raises(Refused, match="empty plan"):
        write_steered(llama, [], tmp_path / "s.pt")
