"""steer.bake: the baked model does without hooks what the plan does with them, or is refused.

The oracles are the hooks (`lm.logits(prompts, plan)`) and transformers' own loader.
"""

import importlib
import json
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

import steer
from steer.models import weight_hash
from steer.models.tiny import tiny as make_tiny

PROMPTS = ["January, February, March,", "Hello there, how are you", "one two three"]
LIMIT = 1e-4
"""On logits with a standard deviation of about 1.5, in fp32; measured: 1.2e-5."""
ALIKE = ["tiny-llama", "tiny-gpt2", "tiny-neox", "tiny-qwen2"]
"""Families without a norm behind their writers and without experts."""
SHIFTING = ["tiny-llama", "tiny-gpt2", "tiny-neox"]
"""Those that have, or can have, a bias at their writers."""


def everywhere(lm, make):
    inside = [make(steer.Site(n, c)) for n in range(lm.n_layers) for c in ("attn_out", "mlp_out")]
    return [make(steer.Site.embed()), *inside]


def down_the_stream(lm, make):
    states = ["resid_post"] if lm.registry.layout.family == "gpt_neox" else ["resid_mid"]
    states = sorted({*states, "resid_post"})
    inside = [make(steer.Site(n, c)) for n in range(lm.n_layers) for c in states]
    return [make(steer.Site(0, "resid_pre")), *inside]


def vectors(lm, gen, n=2):
    return torch.randn(n, lm.d_model, generator=gen)


LINEAR = {
    "add to the embedding": lambda _, v: [steer.Add(steer.Site.embed(), v[0], 0.3)],
    "ablate one writer": lambda _, v: [steer.Ablate(steer.Site(1, "attn_out"), v)],
    "ablate by half": lambda _, v: [steer.Ablate(steer.Site(2, "mlp_out"), v[0], 0.5)],
    "scale": lambda *_: [steer.Scale(steer.Site(2, "mlp_out"), 0.2)],
    "remove a writer": lambda *_: [steer.Scale(steer.Site(2, "attn_out"), 0.0)],
    "rotate": lambda _, v: [steer.Rotate(steer.Site(0, "attn_out"), v, 1.2, 0.8)],
    "ablate everywhere": lambda lm, v: everywhere(lm, lambda s: steer.Ablate(s, v[0])),
    "ablate the stream": lambda lm, v: down_the_stream(lm, lambda s: steer.Ablate(s, v)),
    "clamp the stream": lambda lm, v: down_the_stream(lm, lambda s: steer.Clamp(s, v[0], 1.5)),
}
SHIFTS = {
    "add to the stream": lambda _, v: [steer.Add(steer.Site(2), v[0], 0.7)],
    "add before a block": lambda _, v: [steer.Add(steer.Site(2, "resid_pre"), v[0], 0.7)],
    "add to attention": lambda _, v: [steer.Add(steer.Site(1, "attn_out"), v[0], -0.7)],
    "affine": lambda _, v: [steer.Affine(steer.Site(1, "mlp_out"), 1 + 0.3 * v[0], v[1], 0.5)],
    "clamp": lambda _, v: [steer.Clamp(steer.Site(1, "mlp_out"), v[0], 3.0)],
    "patch": lambda _, v: [steer.Patch(steer.Site(2, "attn_out"), v[0])],
    "several": lambda _, v: [
        steer.Add(steer.Site(1, "mlp_out"), v[0], 0.5),
        steer.Scale(steer.Site(1, "mlp_out"), 1.5),
        steer.Add(steer.Site(1), v[1], -0.4),
        steer.Add(steer.Site(2, "resid_pre"), v[0], 0.2),
        steer.Ablate(steer.Site(3, "attn_out"), v[1]),
    ],
}
CASES = [(name, kind) for name in ALIKE for kind in LINEAR]
CASES += [(name, kind) for name in SHIFTING for kind in SHIFTS]


def gap(a, b):
    return float((a.float() - b.float()).abs().max())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_baked_model_does_what_the_plan_does(tiny, gen, name, kind):
    lm = tiny(name)
    plan = {**LINEAR, **SHIFTS}[kind](lm, vectors(lm, gen))
    baked = steer.bake(lm, plan)
    wanted = lm.logits(PROMPTS, plan, scope=steer.ALL)
    assert gap(baked.logits(PROMPTS, scope=steer.ALL), wanted) < LIMIT
    assert gap(lm.logits(PROMPTS, scope=steer.ALL), wanted) > 0.1  # the plan does something


@pytest.mark.parametrize("name", ALIKE)
def test_cached_generation_gives_the_same_tokens(tiny, gen, name):
    lm = tiny(name)
    for kind in ["add to the embedding", "clamp the stream", *["several"] * (name in SHIFTING)]:
        plan = {**LINEAR, **SHIFTS}[kind](lm, vectors(lm, gen))
        made = steer.bake(lm, plan).generate(PROMPTS, max_new_tokens=12)
        assert made.tokens == lm.generate(PROMPTS, plan, max_new_tokens=12).tokens
        assert made.tokens != lm.generate(PROMPTS, max_new_tokens=12).tokens


def test_a_mid_stream_addition_goes_to_attention(tiny, gen):
    for name in ("tiny-llama", "tiny-gpt2"):
        lm = tiny(name)
        plan = [steer.Add(steer.Site(1, "resid_mid"), vectors(lm, gen)[0])]
        baked = steer.bake(lm, plan)
        assert gap(baked.logits(PROMPTS), lm.logits(PROMPTS, plan)) < LIMIT


# -- laws ----------------------------------------------------------------------------------------


def bits(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ALIKE)
def test_the_original_is_untouched_to_the_bit(tiny, gen, name, tmp_path):
    lm = tiny(name)
    before, config = bits(lm.model), deepcopy(lm.model.config.to_dict())
    modules = [id(module) for module in lm.model.modules()]
    draws = torch.random.get_rng_state()
    logits = lm.logits(PROMPTS)
    plan = everywhere(lm, lambda site: steer.Ablate(site, vectors(lm, gen)))
    steer.bake(lm, plan, tmp_path / "baked")
    assert same(bits(lm.model), before)
    assert lm.model.config.to_dict() == config
    assert [id(module) for module in lm.model.modules()] == modules
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert torch.equal(lm.logits(PROMPTS), logits)


def test_the_copy_shares_no_memory_with_the_original(tiny, gen):
    lm = tiny("tiny-gpt2")
    baked = steer.bake(lm, [steer.Add(steer.Site(1), vectors(lm, gen)[0])])
    mine = {weight.data_ptr() for weight in lm.model.parameters()}
    assert mine.isdisjoint(weight.data_ptr() for weight in baked.model.parameters())


@pytest.mark.parametrize("name", ALIKE)
def test_strength_zero_bakes_the_same_weights(tiny, gen, name):
    lm = tiny(name)
    v = vectors(lm, gen)
    plan = [item for make in {**LINEAR, **SHIFTS}.values() for item in make(lm, v)]
    # Patch has no strength.
    zero = [replace(item, strength=0.0) for item in plan if not isinstance(item, steer.Patch)]
    baked = steer.bake(lm, zero)
    assert same(bits(baked.model), bits(lm.model))
    assert baked.model.config.to_dict() == lm.model.config.to_dict()


def test_order_is_order_of_application(tiny, gen):
    lm = tiny("tiny-gpt2")
    v = vectors(lm, gen)
    site = steer.Site(2, "mlp_out")
    plan = [steer.Add(site, v[0], 2.0), steer.Ablate(site, v[0] + v[1])]
    one, other = steer.bake(lm, plan), steer.bake(lm, plan[::-1])
    assert gap(one.logits(PROMPTS), lm.logits(PROMPTS, plan)) < LIMIT
    assert gap(other.logits(PROMPTS), lm.logits(PROMPTS, plan[::-1])) < LIMIT
    assert gap(one.logits(PROMPTS), other.logits(PROMPTS)) > 0.1


def test_baking_twice_is_both_plans(tiny, gen):
    lm = tiny("tiny-llama")
    v = vectors(lm, gen)
    first, second = [steer.Add(steer.Site(1), v[0])], [steer.Scale(steer.Site(1, "mlp_out"), 0.5)]
    twice = steer.bake(steer.bake(lm, second), first)
    assert gap(twice.logits(PROMPTS), lm.logits(PROMPTS, [*second, *first])) < LIMIT
    assert twice.provenance.name.count("baked with plan") == 2


def test_a_baked_model_is_steered_like_any_other(tiny, gen):
    lm = tiny("tiny-llama")
    v = vectors(lm, gen)
    baked, rest = steer.bake(lm, [steer.Add(steer.Site(1), v[0])]), [steer.Ablate(steer.Site(2), v)]
    wanted = lm.logits(PROMPTS, [steer.Add(steer.Site(1), v[0]), *rest])
    assert gap(baked.logits(PROMPTS, rest), wanted) < LIMIT
    assert steer.check(baked, rest, PROMPTS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_baked_to_its_rounding(dtype, gen):
    lm = steer.load("tiny-llama", dtype=dtype)
    plan = [steer.Add(steer.Site(2), vectors(lm, gen)[0], 2.0)]
    baked = steer.bake(lm, plan)
    assert {weight.dtype for weight in baked.model.parameters()} == {dtype}
    wanted = lm.logits(PROMPTS, plan)
    # Two roundings of the stream apart; the plan itself moves the logits by more than 1.
    assert gap(baked.logits(PROMPTS), wanted) < 0.1
    assert gap(lm.logits(PROMPTS), wanted) > 1.0


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALIKE)
def test_the_checkpoint_is_an_ordinary_one(tiny, gen, name, tmp_path):
    lm = tiny(name)
    kind = "ablate everywhere" if name == "tiny-qwen2" else "several"
    plan = {**LINEAR, **SHIFTS}[kind](lm, vectors(lm, gen))
    baked = steer.bake(lm, plan, tmp_path / "baked")
    assert [entry.name for entry in tmp_path.iterdir()] == ["baked"]
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "baked", output_loading_info=True)
    model, report = loaded
    assert not any(report.values()), report
    assert same(bits(model), bits(baked.model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "baked")
    row = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    assert row[0].tolist() == lm.rows(PROMPTS[:1])[0]
    with torch.no_grad():
        logits = model(row).logits[0, -1]
        tokens = model.generate(row, max_new_tokens=8, do_sample=False)[0, row.shape[1] :]
    assert gap(logits, lm.logits(PROMPTS[:1], plan)[0]) < LIMIT
    assert tokens.tolist() == lm.generate(PROMPTS[:1], plan, max_new_tokens=8).tokens[0]
    again = steer.load(tmp_path / "baked")
    assert torch.equal(again.logits(PROMPTS), baked.logits(PROMPTS))


def test_an_untied_checkpoint_stays_untied(tiny, gen, tmp_path):
    for name in ("tiny-gpt2", "tiny-qwen2"):
        lm = tiny(name)
        plan = [steer.Add(steer.Site.embed(), vectors(lm, gen)[0], 0.3)]
        steer.bake(lm, plan, tmp_path / name)
        model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        head, table = model.get_output_embeddings(), model.get_input_embeddings()
        assert not torch.equal(head.weight, table.weight)
        row = torch.tensor([lm.rows(PROMPTS[:1])[0]])
        with torch.no_grad():
            assert gap(model(row).logits[0, -1], lm.logits(PROMPTS[:1], plan)[0]) < LIMIT


def test_the_folder_says_what_was_baked_into_what(tiny, gen, tmp_path):
    lm = tiny("tiny-llama")
    plan = [steer.Add(steer.Site(2), vectors(lm, gen)[0], 0.7)]
    baked = steer.bake(lm, plan, tmp_path / "baked")
    facts = json.loads((tmp_path / "baked" / "baked.json").read_text())
    assert facts["base"]["name"] == "tiny-llama"
    assert facts["base"]["weights"] == weight_hash(lm.model)
    assert facts["weights"] == weight_hash(baked.model) != facts["base"]["weights"]
    assert facts["plan"]["interventions"] == [repr(plan[0])]
    steer.save(plan, tmp_path / "plan.safetensors")
    loaded = steer.load_artifact(tmp_path / "plan.safetensors")
    spec = importlib.import_module("steer.spec")
    assert facts["plan"]["digest"] == spec.digest(spec.spec_of(loaded))
    assert facts["plan"]["digest"][:12] in baked.provenance.name
    assert "model.layers.2.mlp.down_proj.bias" in facts["written"]
    assert (facts["switched_on"], facts["unembedding_untied"]) == (["mlp_bias"], False)
    assert facts["largest_relative_difference"] < 1e-5


def test_the_folder_names_every_tensor_that_differs(tiny, gen, tmp_path):
    lm = tiny("tiny-gpt2")
    v = vectors(lm, gen)
    plan = [*everywhere(lm, lambda site: steer.Ablate(site, v[0])), steer.Add(steer.Site(2), v[1])]
    old, new = bits(lm.model), bits(steer.bake(lm, plan, tmp_path / "baked").model)
    written = json.loads((tmp_path / "baked" / "baked.json").read_text())["written"]
    assert sorted(written) == sorted(name for name in old if not torch.equal(old[name], new[name]))
    assert len(written) == 2 + 4 * lm.n_layers


def test_a_full_folder_a_file_and_a_missing_parent_are_refused(lm, tmp_path):
    plan = [steer.Scale(steer.Site(1, "mlp_out"), 0.5)]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(steer.SpecError, match=r"full: it holds 1 files \(notes\.txt is one\)"):
        steer.bake(lm, plan, tmp_path / "full")
    with pytest.raises(steer.SpecError, match=r"it is a file.*Give a new folder"):
        steer.bake(lm, plan, tmp_path / "file")
    with pytest.raises(steer.SpecError, match="nowhere is no folder"):
        steer.bake(lm, plan, tmp_path / "nowhere" / "baked")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    steer.bake(lm, plan, str(tmp_path / "empty"))
    assert (tmp_path / "empty" / "config.json").is_file()


def test_a_failed_save_leaves_nothing(lm, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(lm.tokenizer, "save_pretrained", full)
    with pytest.raises(OSError, match="no space left"):
        steer.bake(lm, [steer.Scale(steer.Site(1, "mlp_out"), 0.5)], tmp_path / "baked")
    assert list(tmp_path.iterdir()) == []


def test_a_quantisers_trace_on_dense_weights_does_not_reach_the_checkpoint(gen, tmp_path):
    model: Any
    model, tokenizer = make_tiny("tiny-llama")
    # What a model from a GGUF file carries (transformers 5.23), all its weights being dense.
    model.config.quantization_config = {"quant_method": "gguf"}
    model.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="gguf"))
    lm = steer.wrap(model, tokenizer)
    plan = [steer.Ablate(steer.Site(1, "mlp_out"), vectors(lm, gen)[0])]
    with pytest.raises(ValueError, match="quantized with gguf"):
        model.save_pretrained(tmp_path / "by hand")
    steer.bake(lm, plan, tmp_path / "baked")
    assert "quantization_config" not in json.loads((tmp_path / "baked/config.json").read_text())
    assert model.hf_quantizer is not None
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "baked")
    row = torch.tensor([lm.rows(PROMPTS[:1])[0]])
    with torch.no_grad():
        assert gap(loaded(row).logits[0, -1], lm.logits(PROMPTS[:1], plan)[0]) < LIMIT


# -- refusals ------------------------------------------------------------------------------------


class Packed(torch.nn.Linear):
    """A linear module that keeps its weight in int8, as quantisers do."""

    def __init__(self, dense):
        super().__init__(dense.in_features, dense.out_features, bias=False, device="meta")
        scale = dense.weight.detach().abs().amax() / 127
        self.scale = scale
        packed = (dense.weight.detach() / scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)

    def forward(self, input):
        return torch.nn.functional.linear(input, self.weight * self.scale)


def test_packed_weights_are_refused(gen, tmp_path):
    model, tokenizer = make_tiny("tiny-llama")
    model.model.layers[1].mlp.down_proj = Packed(model.model.layers[1].mlp.down_proj)
    lm = steer.wrap(model, tokenizer)
    # Wherever the plan acts: a checkpoint of this model would not be an ordinary one.
    for layer in (1, 2):
        plan = [steer.Ablate(steer.Site(layer, "mlp_out"), vectors(lm, gen)[0])]
        with pytest.raises(steer.UnsupportedModel, match=r"1 packed weights.*down_proj.*int8"):
            steer.bake(lm, plan, tmp_path / "baked")
    assert list(tmp_path.iterdir()) == []


def test_packed_buffers_are_refused_where_a_quantiser_left_its_trace():
    model, tokenizer = make_tiny("tiny-llama")
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    model.model.layers[0].mlp.register_buffer("qweight", torch.zeros(2, 2, dtype=torch.int32))
    with pytest.raises(
        steer.UnsupportedModel, match=r"packed weights.*qweight.*Load the model dense"
    ):
        steer.bake(steer.wrap(model, tokenizer), [])


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft 0.21 under transformers 5.23
def test_adapters_are_refused_until_they_are_merged(gen):
    model, tokenizer = make_tiny("tiny-llama")
    config = peft.LoraConfig(target_modules=["q_proj", "o_proj"], r=4, init_lora_weights=False)
    with torch.random.fork_rng():
        adapted = peft.get_peft_model(model, config).eval()
    lm = steer.wrap(adapted, tokenizer)  # type: ignore[arg-type]
    plan = [steer.Ablate(steer.Site(1, "attn_out"), vectors(lm, gen)[0])]
    with pytest.raises(steer.UnsupportedModel, match=r"PEFT adapters.*merge_and_unload\(\)"):
        steer.bake(lm, plan)
    wanted = lm.logits(PROMPTS, plan)
    merged = steer.wrap(adapted.merge_and_unload(), tokenizer)  # type: ignore[arg-type]
    assert gap(steer.bake(merged, plan).logits(PROMPTS), wanted) < LIMIT


def test_models_without_known_writers_are_refused():
    model, tokenizer = make_tiny("tiny-llama")
    raw = steer.wrap(model, tokenizer, modules_only=True)
    with pytest.raises(steer.UnsupportedModel, match="modules_only=True"):
        steer.bake(raw, [])
    lm = steer.wrap(model, tokenizer)
    model.train()
    with pytest.raises(steer.UnsupportedModel, match=r"training mode.*eval\(\) first"):
        steer.bake(lm, [])


def test_an_attached_plan_is_refused(lm):
    plan = [steer.Scale(steer.Site(1, "mlp_out"), 0.5)]
    with lm.attached(plan):
        lm.logits(PROMPTS)
        with pytest.raises(steer.PlanError, match=r"A plan is attached.*Detach first"):
            steer.bake(lm, plan)


@pytest.mark.parametrize("site", ["blocks.1.z", "blocks.1.mlp_post", "blocks.1.v[0]", "ln_final"])
def test_sites_that_no_writer_stands_for_are_refused(lm, site):
    place = steer.Site.parse(site)
    with pytest.raises(steer.PlanError, match=r"is neither the stream \(resid_pre.*nor what"):
        steer.bake(lm, [steer.Scale(place, 0.5)])


def test_raw_modules_rows_and_gates_are_refused(lm, gen):
    v = vectors(lm, gen)[0]
    raw = steer.ModuleSite("model.layers.1", "output")
    with pytest.raises(steer.PlanError, match="neither the stream"):
        steer.bake(lm, [steer.Add(raw, v)])
    with pytest.raises(steer.PlanError, match=r"Rows\(1 rows.*differs from row to row"):
        steer.bake(lm, steer.Rows([[steer.Add(steer.Site(1), v)]]))
    with pytest.raises(steer.PlanError, match="its scope is LAST"):
        steer.bake(lm, [steer.Add(steer.Site(1), v, scope=steer.LAST)])
    with pytest.raises(steer.PlanError, match="carries all that earlier blocks wrote"):
        steer.bake(lm, [steer.Ablate(steer.Site(1), v)])


def test_what_does_not_fit_the_model_is_refused_as_on_attaching(lm):
    with pytest.raises(steer.WidthMismatch, match="the direction has 7 entries"):
        steer.bake(lm, [steer.Add(steer.Site(1), torch.ones(7))])
    with pytest.raises(steer.SiteNotFound, match="4 blocks"):
        steer.bake(lm, [steer.Add(steer.Site(9), torch.ones(lm.d_model))])


def test_a_copy_that_differs_from_the_plan_is_never_saved(lm, gen, tmp_path, monkeypatch):
    module = importlib.import_module("steer.bake")
    fold = module.fold

    def at_the_wrong_block(pieces, points):
        return {steer.Site(0, site.component): m for site, m in fold(pieces, points).items()}

    plan = [steer.Add(steer.Site(2), vectors(lm, gen)[0], 0.7)]
    for wrong in (at_the_wrong_block, lambda *_: {}):
        monkeypatch.setattr(module, "fold", wrong)
        with pytest.raises(steer.UnsupportedModel, match=r"does not do what the plan does.*differ"):
            steer.bake(lm, plan, tmp_path / "baked")
    assert list(tmp_path.iterdir()) == []


# -- a real model --------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_is_baked_and_loads_without_us(tmp_path, gen):
    lm = steer.load("smollm2-135m")
    v = vectors(lm, gen)[0]
    plan = [
        steer.Add(steer.Site(15), v / v.norm(), 60.0),
        steer.Scale(steer.Site(3, "mlp_out"), 0.5),
    ]
    plan += [steer.Add(steer.Site.embed(), v / v.norm(), 0.5)]
    steer.bake(lm, plan, tmp_path / "baked")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "baked", dtype=torch.float32)
    row = torch.tensor([lm.rows(["The months are January, February,"])[0]])
    with torch.no_grad():
        logits = model(row).logits[0]
        tokens = model.generate(row, max_new_tokens=12, do_sample=False)[0, row.shape[1] :]
    wanted = lm.logits(row.tolist(), plan, scope=steer.ALL)[0]
    assert gap(logits, wanted) < 1e-3  # logits of up to 30
    assert gap(lm.logits(row.tolist(), scope=steer.ALL)[0], wanted) > 1.0
    assert tokens.tolist() == lm.generate(row.tolist(), plan, max_new_tokens=12).tokens[0]
