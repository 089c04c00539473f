"""Files of other libraries, written here in their public formats, become interventions."""

import pickle
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

import steer
from steer import interop

IDS = torch.tensor([[5, 6, 7, 8, 9]])


class Evil:
    """Would create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


def control_vector(
    path: Path, directions: dict[int, np.ndarray], kind: str = "controlvector"
) -> Path:
    """Write what repeng's export_gguf writes."""
    writer = gguf.GGUFWriter(path, kind)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(directions))
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def hooked(lm: "steer.LM", edits: dict[str, Callable[[Tensor], Tensor]]) -> Tensor:
    """Return logits while plain torch hooks edit module outputs, as the other libraries do."""
    handles = []
    for path, edit in edits.items():
        module = lm.model.get_submodule(path)
        handles.append(
            module.register_forward_hook(
                lambda _m, _a, out, edit=edit: edit(out)  # transformers 5: a plain tensor
            )
        )
    try:
        with torch.no_grad():
            return lm.model(IDS).logits
    finally:
        for handle in handles:
            handle.remove()


def steered(lm: "steer.LM", plan: list) -> Tensor:
    with torch.no_grad(), lm.attached(plan):
        return lm.model(IDS).logits


def test_direction_n_of_a_control_vector_is_added_to_the_output_of_block_n(
    lm: "steer.LM", tmp_path: Path, gen: torch.Generator
) -> None:
    vectors = torch.randn(2, lm.d_model, generator=gen)
    file = control_vector(
        tmp_path / "v.gguf", {3: vectors[0].numpy(), 1: vectors[1].to(torch.float16).numpy()}
    )
    plan = interop.from_repeng(file, strength=2.0)
    assert [str(add.site) for add in plan] == ["blocks.1.resid_post", "blocks.3.resid_post"]
    assert torch.equal(plan[1].direction, vectors[0])
    assert torch.equal(plan[0].direction, vectors[1].half().float())
    theirs = hooked(
        lm,
        {
            "model.layers.1": lambda h: h + 2.0 * vectors[1].half().float(),
            "model.layers.3": lambda h: h + 2.0 * vectors[0],
        },
    )
    assert torch.equal(steered(lm, plan), theirs)


def test_layers_of_a_control_vector_can_be_chosen(tmp_path: Path) -> None:
    file = control_vector(
        tmp_path / "v.gguf", {n: np.full(4, float(n + 1), np.float32) for n in range(4)}
    )
    plan = interop.from_repeng(file, layers=[2], scope=steer.GENERATED)
    assert [(str(a.site), a.direction.tolist(), a.scope) for a in plan] == [
        ("blocks.2.resid_post", [3.0] * 4, steer.GENERATED)
    ]
    with pytest.raises(
        steer.SpecError, match=r"no direction for layers \[7\]: it holds \[0, 1, 2, 3\]"
    ):
        interop.from_repeng(file, layers=[2, 7])


def test_other_gguf_files_are_refused(tmp_path: Path) -> None:
    model = control_vector(tmp_path / "m.gguf", {1: np.zeros(4, np.float32)}, kind="llama")
    with pytest.raises(steer.SpecError, match="architecture 'llama', not 'controlvector'"):
        interop.from_repeng(model)
    (tmp_path / "x.gguf").write_bytes(b"nothing of the kind, but long enough to be read")
    with pytest.raises(steer.SpecError, match="not a readable GGUF file"):
        interop.from_repeng(tmp_path / "x.gguf")
    with pytest.raises(steer.SpecError, match="There is no file"):
        interop.from_repeng(tmp_path / "none.gguf")


def test_a_truncated_control_vector_is_refused(tmp_path: Path) -> None:
    file = control_vector(tmp_path / "v.gguf", {1: np.ones(64, np.float32)})
    whole = file.read_bytes()
    for length in (8, 40, len(whole) - 100):
        file.write_bytes(whole[:length])
        with pytest.raises(steer.SpecError, match="not a readable GGUF file"):
            interop.from_repeng(file)


def test_a_caa_vector_is_added_at_the_layer_of_its_name_from_the_last_prompt_token_on(
    lm: "steer.LM", tmp_path: Path, gen: torch.Generator
) -> None:
    vector = torch.randn(lm.d_model, generator=gen)
    file = tmp_path / "vec_layer_2_Llama-2-7b-chat-hf.pt"
    torch.save(vector, file)
    add = interop.from_caa(file, strength=-1.5)
    assert str(add.site) == "blocks.2.resid_post"
    assert add.scope == steer.OUTPUT

    def theirs(h: Tensor) -> Tensor:
        return torch.cat([h[:, :-1], h[:, -1:] + -1.5 * vector], dim=1)

    assert torch.equal(steered(lm, [add]), hooked(lm, {"model.layers.2": theirs}))


def test_a_caa_vector_needs_a_layer_and_one_vector(tmp_path: Path) -> None:
    torch.save(torch.ones(1, 8), tmp_path / "v.pt")
    with pytest.raises(steer.SpecError, match=r"not named vec_layer_.*Give layer="):
        interop.from_caa(tmp_path / "v.pt")
    assert interop.from_caa(tmp_path / "v.pt", layer=3).direction.shape == (8,)
    torch.save(torch.ones(2, 8), tmp_path / "m.pt")
    with pytest.raises(steer.SpecError, match=r"holds \(2, 8\), not one vector"):
        interop.from_caa(tmp_path / "m.pt", layer=3)
    torch.save({"a": torch.ones(8)}, tmp_path / "d.pt")
    with pytest.raises(steer.SpecError, match=r"holds dict, not one vector.*from_lm_eval"):
        interop.from_caa(tmp_path / "d.pt", layer=3)


@pytest.mark.parametrize("how", ["torch", "bare"])
def test_a_pickle_with_code_in_it_is_refused_and_its_code_does_not_run(
    lm: "steer.LM", tmp_path: Path, how: str
) -> None:
    file, trace = tmp_path / "vec_layer_1_x.pt", tmp_path / "it-ran"
    if how == "torch":
        torch.save({"model.layers.1": Evil(trace)}, file)
    else:
        file.write_bytes(pickle.dumps(Evil(trace), protocol=2))
    for load in (interop.from_caa, lambda path: interop.from_lm_eval(path, lm)):
        with pytest.raises(
            steer.SpecError, match=r"read as tensors only.*torch\.save\(vector, path\)"
        ):
            load(file)
    assert not trace.exists()


@pytest.mark.parametrize("as_list", [False, True])
def test_lm_eval_entries_do_what_their_text_says(
    lm: "steer.LM", tmp_path: Path, gen: torch.Generator, as_list: bool
) -> None:
    v = torch.randn(4, lm.d_model, generator=gen)
    held = {
        "layers.1": {"action": "add", "steering_vector": v[0], "steering_coefficient": 3.0},
        "layers.2.mlp": {
            "action": "clamp",
            "steering_vector": v[1],
            "steering_coefficient": 4.0,
            "bias": v[2],
        },
        "layers.2.input_layernorm": {
            "action": "add",
            "steering_vector": v[3],
            "steering_coefficient": 0.5,
            "bias": None,
            "head_index": None,
        },
    }
    file = tmp_path / "steer.pt"
    torch.save([{"hookpoint": k, **e} for k, e in held.items()] if as_list else held, file)
    plan = interop.from_lm_eval(file, lm)
    assert [str(item.site) for item in plan] == [
        "blocks.1.resid_post",
        "blocks.2.mlp_out",
        "module:model.layers.2.input_layernorm:output",
    ]
    unit = v[1] / v[1].norm()

    def clamp(h: Tensor) -> Tensor:
        part = ((h - v[2]) * unit).sum(-1, keepdim=True)
        return (h - v[2]) - part * unit + 4.0 * unit + v[2]

    theirs = hooked(
        lm,
        {
            "model.layers.1": lambda h: h + 3.0 * v[0],
            "model.layers.2.mlp": clamp,
            "model.layers.2.input_layernorm": lambda h: h + 0.5 * v[3],
        },
    )
    # Rounding only: they project h - bias, we shift the target by the bias.
    assert (steered(lm, plan) - theirs).abs().max() < 1e-4
    assert (theirs - hooked(lm, {})).abs().max() > 0.1


def test_lm_eval_lists_may_act_twice_at_one_place_in_order(lm: "steer.LM", tmp_path: Path) -> None:
    entry = {"hookpoint": "layers.0", "action": "add", "steering_vector": torch.ones(lm.d_model)}
    torch.save(
        [{**entry, "steering_coefficient": 1.0}, {**entry, "steering_coefficient": -2.0}],
        tmp_path / "s.pt",
    )
    plan = interop.from_lm_eval(tmp_path / "s.pt", lm)
    assert [add.strength for add in plan] == [1.0, -2.0]


def test_hookpoints_of_gpt2_are_below_its_transformer(tiny: Callable, tmp_path: Path) -> None:
    lm = tiny("tiny-gpt2")
    torch.save({"h.1.attn": {"steering_vector": torch.ones(lm.d_model)}}, tmp_path / "s.pt")
    (add,) = interop.from_lm_eval(tmp_path / "s.pt", lm)
    assert str(add.site) == "blocks.1.attn_out"
    assert add.strength == 1.0


@pytest.mark.parametrize(
    ("entry", "error", "match"),
    [
        (
            {"hookpoint": "layers.9"},
            steer.SiteNotFound,
            r"no module 'model\.layers\.9'.*Did you mean",
        ),
        ({"action": "clampp"}, steer.SpecError, r"action 'clampp'.*Did you mean clamp\?"),
        (
            {"head_index": 1},
            steer.SpecError,
            r"head 1 of layers\.1.*steer\.Site\(layer, 'z', head\)",
        ),
        ({"steering_coefficient": "much"}, steer.SpecError, "'much', which is no number"),
        ({"steering_vector": "none"}, steer.SpecError, "holds no steering entries"),
    ],
)
def test_wrong_lm_eval_entries_are_refused_by_name(
    lm: "steer.LM", tmp_path: Path, entry: dict, error: type, match: str
) -> None:
    good = {"hookpoint": "layers.1", "action": "add", "steering_vector": torch.ones(lm.d_model)}
    torch.save([good, {**good, **entry}], tmp_path / "s.pt")
    with pytest.raises(error, match=match):
        interop.from_lm_eval(tmp_path / "s.pt", lm)


def test_one_bad_entry_of_a_dict_is_not_dropped_in_silence(lm: "steer.LM", tmp_path: Path) -> None:
    good = {"action": "add", "steering_vector": torch.ones(lm.d_model)}
    torch.save({"layers.1": good, "layers.2": torch.ones(lm.d_model)}, tmp_path / "s.pt")
    with pytest.raises(steer.SpecError, match="holds no steering entries"):
        interop.from_lm_eval(tmp_path / "s.pt", lm)


def test_a_csv_of_features_needs_a_decoder_and_then_gives_the_same_plan(
    lm: "steer.LM", tmp_path: Path, gen: torch.Generator
) -> None:
    file = tmp_path / "features.csv"
    file.write_text(
        "loader,action,sparse_model,hookpoint,feature_index,steering_coefficient,sae_id,description,\n"
        "sparsify,add,me/sae,layers.3,2,10.0,,,\n"
        "sae_lens,clamp,release,blocks.1.hook_resid_post,0,4.5,layer_1/width_16k,a feature,\n"
    )
    with pytest.raises(steer.SpecError, match=r"feature 2 of me/sae.*Give decoder="):
        interop.from_lm_eval(file, lm)
    weights = torch.randn(3, lm.d_model, generator=gen)
    plan = interop.from_lm_eval(
        file, lm, decoder=lambda row: (weights[int(row["feature_index"])], None)
    )
    assert isinstance(plan[0], steer.Add)
    assert str(plan[0].site) == "blocks.3.resid_post"
    assert torch.equal(plan[0].direction, weights[2])
    assert plan[0].strength == 10.0
    assert isinstance(plan[1], steer.Clamp)
    assert str(plan[1].site) == "blocks.1.resid_post"
    assert plan[1].to == 4.5
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(steer.SpecError, match="lacks some of the columns"):
        interop.from_lm_eval(tmp_path / "other.csv", lm)
    (tmp_path / "s.bin").write_bytes(b"")
    with pytest.raises(steer.SpecError, match=r"ends in '\.bin'"):
        interop.from_lm_eval(tmp_path / "s.bin", lm)


def test_a_vector_for_another_model_is_refused_when_attached(
    lm: "steer.LM", tmp_path: Path
) -> None:
    torch.save(torch.ones(4096), tmp_path / "vec_layer_1_other.pt")
    add = interop.from_caa(tmp_path / "vec_layer_1_other.pt")
    with pytest.raises(steer.WidthMismatch, match="4096 entries"):
        lm.attached([add])
