"""ModuleSite on models without standard sites: BERT, T5, ViT and Mamba."""

from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

import steer
from steer.models.tiny_tokenizer import tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def bert():
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
    )
    return BertModel(config), "encoder.layer.1.output", {"input_ids": IDS}


def t5():
    config = T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
    )
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS[:, :3]}
    return T5ForConditionalGeneration(config), "decoder.block.1.layer.2", inputs


def vit():
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=16,
        patch_size=8,
    )
    return ViTModel(config), "layernorm", {"pixel_values": torch.randn(2, 3, 16, 16)}


def mamba() -> tuple[Any, str, dict[str, torch.Tensor]]:
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    return MambaForCausalLM(config), "backbone.layers.1.mixer", {"input_ids": IDS}


@pytest.fixture(params=[bert, t5, vit, mamba], ids=["bert", "t5", "vit", "mamba"])
def case(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, path, inputs = request.param()
        return model.eval(), path, inputs


def module_output(model, path, inputs, change=None):
    """The module's output, and the model's, under a plain torch hook."""
    kept = []

    def hook(_module, _args, output):
        tensor = output if isinstance(output, torch.Tensor) else output[0]
        kept.append(tensor.clone())
        if change is None:
            return None
        new = change(tensor)
        return new if isinstance(output, torch.Tensor) else (new, *output[1:])

    handle = model.get_submodule(path).register_forward_hook(hook)
    with torch.no_grad():
        final = model(**inputs)[0]
    handle.remove()
    return kept[0], final


def test_an_edit_at_a_raw_site_equals_a_plain_hook_and_leaves_nothing(case):
    model, path, inputs = case
    lm = steer.wrap(model, tiny_tokenizer(), modules_only=True)
    vector = torch.linspace(-1, 1, 32)
    before, plain = module_output(model, path, inputs)
    _, expected = module_output(model, path, inputs, lambda t: t + 3 * vector)
    with lm.attached([steer.Add(steer.ModuleSite(path), vector, 3.0)]) as run, torch.no_grad():
        steered = model(**inputs)[0]
    assert torch.allclose(steered, expected, atol=1e-6)
    assert not torch.allclose(steered, plain, atol=1e-2)
    assert run.receipt[0].eligible.tolist() == [before.shape[1]] * 2
    with torch.no_grad():
        assert torch.equal(model(**inputs)[0], plain)


def test_positions_are_counted_in_the_modules_own_tensor(case):
    model, path, inputs = case
    lm = steer.wrap(model, tiny_tokenizer(), modules_only=True)
    seen = []
    look = steer.Custom(steer.ModuleSite(path), lambda h, _: (seen.append(h.clone()), h)[1])
    only_two = steer.Scale(steer.ModuleSite(path), 0.0, scope=steer.at(2))
    with lm.attached([only_two, look]), torch.no_grad():
        model(**inputs)
    assert (seen[0][:, 2] == 0).all()
    assert (seen[0][:, 1] != 0).any()


def test_standard_sites_and_prompt_scopes_are_refused(case):
    model, path, inputs = case
    lm = steer.wrap(model, tiny_tokenizer(), modules_only=True)
    with pytest.raises(steer.SiteNotFound, match=r"modules_only=True.*Name a module"):
        lm.attached([steer.Scale(steer.Site(0, "resid_post"), 0.0)])
    last = steer.Scale(steer.ModuleSite(path), 0.0, scope=steer.LAST)
    with (
        pytest.raises(steer.ScopeError, match="depends on where the prompt ends"),
        lm.attached([last]),
        torch.no_grad(),
    ):
        model(**inputs)
    assert lm.registry.live == 0


def test_generate_of_a_recurrent_model_is_steered_everywhere_or_refused():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, path, inputs = mamba()
    model.eval()
    lm = steer.wrap(model, tiny_tokenizer(), modules_only=True)
    site, options = steer.ModuleSite(path), {"max_new_tokens": 4, "do_sample": False}
    plain = model.generate(**inputs, **options, pad_token_id=0)
    with lm.attached([steer.Add(site, torch.linspace(-9, 9, 32))]) as run:
        steered = model.generate(**inputs, **options, pad_token_id=0)
    assert not torch.equal(plain, steered)
    assert run.receipt[0].eligible.tolist() == [7, 7]
    with (
        pytest.raises(steer.PlanError, match="Use ALL"),
        lm.attached([steer.Scale(site, 0.0, scope=steer.FIRST)]),
    ):
        model.generate(**inputs, **options, pad_token_id=0)


def test_without_modules_only_such_models_are_refused_and_told_how(case):
    model, _, _ = case
    with pytest.raises(steer.UnsupportedModel):
        steer.wrap(model, tiny_tokenizer())
