"""Live models: LoRA adapters, layouts of the user's own, models in training mode."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

import steer
from steer.models.layouts import resolve
from steer.models.tiny import tiny as make_tiny

PROMPTS = ["January, February, March,", "Hello there"]
SITE = steer.Site(2, "resid_post")


@pytest.fixture
def adapted():
    model, tokenizer = make_tiny("tiny-llama")
    config = LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(model.eval(), config).eval(), tokenizer


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft 0.21 under transformers 5.23
def test_a_lora_model_is_steered_with_its_adapters(adapted, gen):
    model, tokenizer = adapted
    lm = steer.wrap(model, tokenizer)
    row = lm.rows(PROMPTS[:1])[0]
    with torch.no_grad():
        states = model(torch.tensor([row]), output_hidden_states=True).hidden_states
    assert torch.allclose(lm.capture(PROMPTS[:1], [SITE])[SITE][0], states[3][0, -1], atol=1e-5)
    plan = [steer.Add(SITE, torch.randn(lm.d_model, generator=gen), 3.0)]
    assert steer.check(lm, plan, PROMPTS)
    made = lm.generate(PROMPTS, plan, max_new_tokens=4)
    assert made.log_probs is not None
    assert made.receipt[0].eligible.tolist() == [len(r) + 3 for r in lm.rows(PROMPTS)]
    assert "generate" not in model.__dict__


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_logits_of_a_lora_model_are_steered_in_forward_and_in_generate(adapted):
    lm = steer.wrap(*adapted)
    favourite = torch.zeros(lm.registry.layout.d_vocab)
    favourite[7] = 1e4
    plan = [steer.Add(steer.Site.logits(), favourite)]
    assert lm.logits(PROMPTS, plan).argmax(-1).tolist() == [7, 7]
    made = lm.generate(PROMPTS, plan, max_new_tokens=3)
    assert [set(tokens) for tokens in made.tokens] == [{7}, {7}]


def test_training_mode_is_put_back_after_the_check_at_load():
    model, tokenizer = make_tiny("tiny-llama")
    model.train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    steer.wrap(model, tokenizer)
    assert [module.training for module in model.modules()] == before


def test_a_table_of_ones_own_counts_once_it_is_checked():
    model, tokenizer = make_tiny("tiny-llama")
    lm = steer.wrap(model, tokenizer)
    taps = lm.registry.layout.taps

    def own(live):
        return replace(resolve(live), family="mine")

    lm.registry.add_layout("llama", own)
    assert lm.registry.layout.family == "mine"

    def wrong(live):
        swapped = {**taps, "resid_post": taps["mlp_out"]}
        return replace(resolve(live), taps=swapped)

    with pytest.raises(steer.UnsupportedModel):
        lm.registry.add_layout("llama", wrong)
    assert lm.registry.layout.family == "mine", "the old layout stays"
    lm.registry.verify()


def test_the_layout_cannot_change_under_an_attached_plan():
    model, tokenizer = make_tiny("tiny-llama")
    lm = steer.wrap(model, tokenizer)
    with lm.attached([steer.Add(SITE, torch.ones(lm.d_model))]):
        with pytest.raises(steer.PlanError, match="Detach it"):
            lm.registry.add_layout("llama", resolve)
        lm.logits(PROMPTS)
    assert lm.registry.live == 0


def test_a_table_of_ones_own_can_be_given_when_wrapping():
    model, tokenizer = make_tiny("tiny-llama")
    lm = steer.wrap(
        model, tokenizer, layouts={"llama": lambda m: replace(resolve(m), family="mine")}
    )
    assert lm.registry.layout.family == "mine"
