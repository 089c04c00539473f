"""steer.writers: single weights against the arithmetic written out, families against the hooks."""

from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import steer
from steer.models.tiny import fill
from steer.models.tiny import tiny as make_tiny

PROMPTS = ["January, February, March,", "Hello there, how are you", "one two three"]
LIMIT = 1e-4
"""On logits with a standard deviation of about 1.5, in fp32; measured: 1.2e-5."""


def everywhere(lm, make):
    inside = [make(steer.Site(n, c)) for n in range(lm.n_layers) for c in ("attn_out", "mlp_out")]
    return [make(steer.Site.embed()), *inside]


def vectors(lm, gen, n=2):
    return torch.randn(n, lm.d_model, generator=gen)


def gap(a, b):
    return float((a.float() - b.float()).abs().max())


def bits(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


# -- single weights ------------------------------------------------------------------------------


def test_an_addition_changes_one_bias_by_strength_times_direction(tiny, gen):
    lm = tiny("tiny-gpt2")
    v = vectors(lm, gen)[0]
    old, new = bits(lm.model), bits(steer.bake(lm, [steer.Add(steer.Site(2), v, 0.7)]).model)
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert changed == ["transformer.h.2.mlp.c_proj.bias"]
    wanted = (old[changed[0]].double() + 0.7 * v.double()).float()
    assert torch.equal(new[changed[0]], wanted)


def test_an_ablated_writer_cannot_write_the_direction(tiny, gen):
    lm = tiny("tiny-llama")
    v = vectors(lm, gen)[0]
    unit = v / v.norm()
    old = bits(lm.model)
    new = bits(steer.bake(lm, [steer.Ablate(steer.Site(1, "attn_out"), v)]).model)
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert changed == ["model.layers.1.self_attn.o_proj.weight"]
    weight = old[changed[0]]
    assert float((unit @ new[changed[0]]).abs().max()) < 1e-6
    torch.testing.assert_close(new[changed[0]], weight - torch.outer(unit, unit @ weight))


def test_where_a_bias_is_missing_the_config_switches_one_on(tiny, gen):
    lm = tiny("tiny-llama")
    baked = steer.bake(lm, [steer.Add(steer.Site(2), vectors(lm, gen)[0])])
    assert (lm.model.config.mlp_bias, lm.model.config.attention_bias) == (False, False)
    assert (baked.model.config.mlp_bias, baked.model.config.attention_bias) == (True, False)
    added = {n: w for n, w in bits(baked.model).items() if n not in bits(lm.model)}
    busy = [name for name, weight in added.items() if bool(weight.any())]
    assert busy == ["model.layers.2.mlp.down_proj.bias"]
    assert len(added) == 3 * lm.n_layers
    assert "mlp_bias switched on" in repr(baked)


def test_a_change_of_the_embedding_unties_the_unembedding(tiny, gen):
    for name in ("tiny-gpt2", "tiny-qwen2"):
        lm = tiny(name)
        v = vectors(lm, gen)[0]
        baked = steer.bake(lm, [steer.Add(steer.Site.embed(), v, 0.3)])
        new: Any = baked.model
        table, head = new.get_input_embeddings(), new.get_output_embeddings()
        old = lm.model.get_input_embeddings().weight
        assert torch.equal(head.weight, old)
        assert torch.equal(table.weight, (old.double() + 0.3 * v.double()).float())
        assert baked.model.config.tie_word_embeddings is False
        assert lm.model.config.tie_word_embeddings is True
        assert "unembedding untied" in repr(baked)


def test_projecting_the_embedding_projects_the_positions_too(tiny, gen):
    lm = tiny("tiny-gpt2")
    v = vectors(lm, gen)[0]
    new = bits(steer.bake(lm, [steer.Ablate(steer.Site.embed(), v)]).model)
    for table in ("transformer.wte.weight", "transformer.wpe.weight"):
        assert float((new[table] @ (v / v.norm())).abs().max()) < 1e-6, table


# -- other families ------------------------------------------------------------------------------

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


def made(build, config):
    _, tokenizer = make_tiny("tiny-llama")
    shared = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": None}
    with torch.random.fork_rng():
        model = build(config(**shared, **SIZES, pad_token_id=0))
    fill(model, build.__name__)
    return steer.wrap(model.eval(), tokenizer)


def granite(**shared):
    return GraniteConfig(
        **shared, residual_multiplier=0.5, embedding_multiplier=3.0, intermediate_size=48
    )


def cohere(**shared):
    return CohereConfig(**shared, intermediate_size=48, logit_scale=1.0)


def opt(**shared):
    return OPTConfig(**shared, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64)


@pytest.mark.parametrize(
    ("build", "config", "switched"),
    [
        (GraniteForCausalLM, granite, "mlp_bias switched on"),  # scaled writers, scaled embedding
        (CohereForCausalLM, cohere, "attention_bias switched on"),  # parallel; no bias in the MLP
        (OPTForCausalLM, opt, "baked"),  # positions from an offset, an MLP on flattened tokens
    ],
    ids=["granite", "cohere", "opt"],
)
def test_scaled_parallel_and_flattened_families(build, config, switched, gen):
    lm = made(build, config)
    v = vectors(lm, gen)
    for plan in (
        [steer.Add(steer.Site(1), v[0]), steer.Scale(steer.Site(0, "mlp_out"), 0.3)],
        [steer.Add(steer.Site.embed(), v[0])],
        everywhere(lm, lambda site: steer.Ablate(site, v[0])),
    ):
        baked = steer.bake(lm, plan)
        wanted = lm.logits(PROMPTS, plan)
        assert gap(baked.logits(PROMPTS), wanted) < LIMIT
        assert gap(lm.logits(PROMPTS), wanted) > 0.1
    plan = [steer.Add(steer.Site(1), v[0])]
    assert switched in steer.bake(lm, plan).provenance.name


def test_gemmas_embedding_is_scaled_and_can_be_shifted(tiny, gen):
    lm = tiny("tiny-gemma3")
    plan = [steer.Add(steer.Site.embed(), vectors(lm, gen)[0], 0.5)]
    assert gap(steer.bake(lm, plan).logits(PROMPTS), lm.logits(PROMPTS, plan)) < LIMIT


def test_a_weight_that_two_blocks_share_is_refused():
    model: Any
    model, tokenizer = make_tiny("tiny-gpt2")
    blocks = model.transformer.h
    blocks[2].mlp.c_proj.weight = blocks[1].mlp.c_proj.weight
    lm = steer.wrap(model, tokenizer)
    plan = [steer.Scale(steer.Site(1, "mlp_out"), 0.5)]
    with pytest.raises(steer.UnsupportedModel, match=r"h\.1\.mlp.*and.*h\.2\.mlp.*are one weight"):
        steer.bake(lm, plan)


def test_norms_behind_writers_experts_and_missing_biases_are_named(tiny, gen):
    gemma, mixtral, qwen = tiny("tiny-gemma3"), tiny("tiny-mixtral"), tiny("tiny-qwen2")
    with pytest.raises(
        steer.UnsupportedModel, match=r"o_proj goes through .*post_attention_layernorm \(Gemma3"
    ):
        steer.bake(gemma, [steer.Scale(steer.Site(1, "attn_out"), 0.5)])
    with pytest.raises(steer.UnsupportedModel, match="post_feedforward_layernorm"):
        steer.bake(gemma, [steer.Add(steer.Site(1), vectors(gemma, gen)[0])])
    with pytest.raises(
        steer.UnsupportedModel, match=r"no single projection that writes blocks\.1\.mlp_out.*expert"
    ):
        steer.bake(mixtral, [steer.Scale(steer.Site(1, "mlp_out"), 0.5)])
    with pytest.raises(
        steer.UnsupportedModel, match=r"down_proj has no bias.*Qwen2ForCausalLM.*lm\.attached"
    ):
        steer.bake(qwen, [steer.Add(steer.Site(1), vectors(qwen, gen)[0])])


def test_a_stream_with_norms_on_its_sums_is_refused():
    def post_norm(**shared):
        config = opt(**shared)
        config.do_layer_norm_before = False
        return config

    lm = made(OPTForCausalLM, post_norm)
    plan = [steer.Add(steer.Site(1), torch.ones(lm.d_model))]
    with pytest.raises(steer.UnsupportedModel, match="a norm after each sum"):
        steer.bake(lm, plan)
    plan = [steer.Add(steer.Site(1, "mlp_out"), torch.ones(lm.d_model))]
    assert gap(steer.bake(lm, plan).logits(PROMPTS), lm.logits(PROMPTS, plan)) < LIMIT


def test_an_embedding_that_is_projected_is_refused():
    def projected(**shared):
        config = opt(**shared)
        config.word_embed_proj_dim = 16
        return config

    lm = made(OPTForCausalLM, projected)
    plan = [steer.Add(steer.Site.embed(), torch.ones(lm.d_model))]
    with pytest.raises(steer.UnsupportedModel, match=r"What enters block 0.*projected or normed"):
        steer.bake(lm, plan)
