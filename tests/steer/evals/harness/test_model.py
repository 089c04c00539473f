"""The model class against `lm.generate` and `lm.score`, and against lm-eval's own `hf` model."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

import steer
from steer.evals import Refused, open_log, verify
from steer.evals.harness import register
from steer.evals.harness.model import SteeredLM
from steer.evals.harness.settings import seed_of
from steer.evals.manifest import plan_digest
from steer.scopes import Scope

PROMPTS = ["a b c", "the cat sat on the", "one two", "x", "dogs and cats and"]
TAILS = [" d e f", " mat", " three four five", " yes and", " no"]
LONG = " ".join(f"word{at} cat" for at in range(30))
SITE = steer.Site(2)
pytestmark = pytest.mark.filterwarnings("ignore")
"""lm-eval and what it imports warn of themselves."""


@pytest.fixture(scope="module")
def lm():
    return steer.load("tiny-llama")


@pytest.fixture(scope="module")
def hf(folder):
    """Return a function from max_length to lm-eval's own model on the same weights."""

    def made(max_length=None) -> HFLM:
        own = cast("Any", HFLM)
        return own(pretrained=str(folder), device="cpu", batch_size=2, max_length=max_length)

    return made


def steered(lm, scope: Scope = steer.ALL) -> list[steer.Add]:
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    return [steer.Add(SITE, v, 3.0, scope=scope)]


def scoring(pairs) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, at) for at, pair in enumerate(pairs)]


def rolling(texts) -> list[Instance]:
    return [Instance("loglikelihood_rolling", {}, (text,), at) for at, text in enumerate(texts)]


def generating(prompts, **given) -> list[Instance]:
    asked = [(prompt, dict(given)) for prompt in prompts]
    return [Instance("generate_until", {}, pair, at) for at, pair in enumerate(asked)]


@pytest.mark.parametrize("scope", [steer.ALL, steer.OUTPUT, ~steer.FIRST])
def test_scores_are_those_of_lm_score_under_the_same_plan(lm, scope):
    plan = steered(lm, scope)
    found = SteeredLM(lm, plan, batch_size=2).loglikelihood(
        scoring(zip(PROMPTS, TAILS, strict=True)), disable_tqdm=True
    )
    # The same spans, as lm-eval cuts them; `lm.score` wants text, whose tails are tokens here.
    tails = [
        lm.rows([p + t])[0][len(lm.rows([p])[0]) :] for p, t in zip(PROMPTS, TAILS, strict=True)
    ]
    whole = [
        lm.logits([p + t], plan, scope=steer.ALL)[0] for p, t in zip(PROMPTS, TAILS, strict=True)
    ]
    if scope != steer.OUTPUT:  # without run.prompt a bare pass is all prompt
        for (total, _), logits, tail in zip(found, whole, tails, strict=True):
            own = logits[-len(tail) - 1 : -1].log_softmax(-1)
            wanted = own.gather(1, torch.tensor(tail)[:, None]).sum()
            assert total == pytest.approx(float(wanted), abs=1e-4)
    texts = [lm.tokenizer.decode(tail) for tail in tails]
    again = lm.tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [list(ids) for ids in again] == tails  # so that lm.score means the same spans
    wanted = lm.score(PROMPTS, texts, plan).tolist()
    assert [total for total, _ in found] == pytest.approx(wanted, abs=1e-4)
    plain = lm.score(PROMPTS, texts).tolist()
    assert all(abs(a - b) > 1e-3 for a, b in zip(plain, wanted, strict=True))


@pytest.mark.parametrize("max_length", [None, 12])
def test_without_a_plan_all_three_kinds_of_request_give_what_lm_evals_own_model_gives(
    lm, hf, max_length
):
    own, ours = hf(max_length), SteeredLM(lm, "none", max_length=max_length)
    pairs = [*zip(PROMPTS, TAILS, strict=True), ("", " a b"), (LONG, " mat"), ("trailing ", "b c")]
    wanted = own.loglikelihood(scoring(pairs), disable_tqdm=True)
    found = ours.loglikelihood(scoring(pairs), disable_tqdm=True)
    assert [one for one, _ in found] == pytest.approx([one for one, _ in wanted], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    texts = [*PROMPTS[:3], LONG]
    assert ours.loglikelihood_rolling(rolling(texts)) == pytest.approx(
        own.loglikelihood_rolling(rolling(texts), disable_tqdm=True), abs=1e-3
    )  # sums of 100 log-probabilities
    # One prompt a call: lm-eval's own model tokenises a batch by what its first text is.
    for prompt in [*PROMPTS, LONG]:
        asked = generating([prompt], until=["q"], max_gen_toks=6, do_sample=False)
        assert ours.generate_until(asked) == own.generate_until(asked, disable_tqdm=True)


def test_texts_are_those_of_generate_under_the_same_plan_in_batches_of_any_size(lm):
    plan = steered(lm)
    wanted = list(lm.generate(PROMPTS, plan, max_new_tokens=8))
    assert wanted != list(lm.generate(PROMPTS, max_new_tokens=8))
    asked = generating(PROMPTS, until=[], max_gen_toks=8)
    for size in (None, 1, 2):
        assert SteeredLM(lm, plan, batch_size=size).generate_until(asked) == wanted
    mixed = [*generating(PROMPTS[:2], max_gen_toks=3), *generating(PROMPTS[2:], max_gen_toks=8)]
    short = lm.generate(PROMPTS[:2], plan, max_new_tokens=3)
    assert SteeredLM(lm, plan).generate_until(mixed) == [*short, *wanted[2:]]


def test_a_text_ends_before_its_first_stop_string(lm):
    plan = steered(lm)
    whole = lm.generate(PROMPTS, plan, max_new_tokens=8)
    stop = whole[0][3:5]
    found = SteeredLM(lm, plan).generate_until(
        generating(PROMPTS, until=[stop, "", "never this"], max_gen_toks=8)
    )
    assert found == [text.split(stop)[0] for text in whole]
    assert found[0] == whole[0][:3]


def test_a_request_draws_what_generate_draws_with_its_seed_whatever_is_beside_it(lm):
    plan = steered(lm)
    given = {"do_sample": True, "temperature": 0.8, "top_k": 20, "max_gen_toks": 6}
    asked = generating([*PROMPTS, PROMPTS[0]], **given)
    found = SteeredLM(lm, plan, seed=5).generate_until(asked)
    for prompt, text in zip(PROMPTS, found, strict=False):
        (wanted,) = lm.generate(
            [prompt],
            plan,
            max_new_tokens=6,
            do_sample=True,
            seed=seed_of(5, prompt, 0),
            temperature=0.8,
            top_k=20,
        )
        assert text == wanted
    assert found[0] != found[-1]  # repeats of one request draw anew
    assert SteeredLM(lm, plan, seed=5, batch_size=2).generate_until(asked[2:3]) == found[2:3]
    assert SteeredLM(lm, plan, seed=6).generate_until(asked) != found


def test_a_cut_text_is_refused_under_a_plan_that_counts_from_the_front(lm):
    asked = scoring([(LONG, " mat")])
    for scope in (steer.at(3), steer.text("word0"), steer.ALL & ~steer.span(0, 2)):
        model = SteeredLM(lm, steered(lm, scope), max_length=24)
        for run in (
            lambda m=model: m.loglikelihood(asked, disable_tqdm=True),
            lambda m=model: m.loglikelihood_rolling(rolling([LONG])),
            lambda m=model: m.generate_until(generating([LONG], max_gen_toks=4)),
        ):
            with pytest.raises(Refused, match="cut off") as refusal:
                run()
            assert refusal.value.reason == "too_long"
    model = SteeredLM(lm, steered(lm, steer.at(-3)), max_length=24)
    (found,) = model.loglikelihood(asked, disable_tqdm=True)
    ids, whole = lm.rows([LONG])[0], lm.rows([LONG + " mat"])[0]
    tail = whole[len(ids) :]
    kept = ids[-(25 - len(tail)) :]
    with torch.no_grad(), lm.attached(steered(lm, steer.at(-3))) as run:
        run.prompt([len(kept)])
        logits = lm.model(torch.tensor([kept + tail[:-1]])).logits[0, len(kept) - 1 :]
    wanted = logits.log_softmax(-1).gather(1, torch.tensor(tail)[:, None]).sum()
    assert found[0] == pytest.approx(float(wanted), abs=1e-4)


def test_too_many_new_tokens_are_refused(lm):
    with pytest.raises(Refused, match="24 new tokens, but the model reads 24"):
        SteeredLM(lm, "none", max_length=24).generate_until(generating(["a"], max_gen_toks=24))


def test_no_answer_is_given_where_the_plan_did_not_fire(lm):
    model = SteeredLM(lm, steered(lm, steer.text("cat", missing="skip")))
    with pytest.raises(Refused) as refusal:
        model.generate_until(generating(PROMPTS, max_gen_toks=3))
    assert refusal.value.reason == "never_fired"


def test_the_plain_model_is_only_given_where_it_is_asked_for(lm, tmp_path):
    plan = steer.save(steered(lm), tmp_path / "plan.safetensors")
    digest = plan_digest(steered(lm))
    for text in ("model=tiny-llama", "model=tiny-llama,digest=" + digest, "plan=none"):
        with pytest.raises(Refused) as refusal:
            SteeredLM.create_from_arg_string(text)
        assert refusal.value.reason == "bad_request"
    for empty in ([], None, "", (), 3):
        with pytest.raises(Refused) as refusal:
            SteeredLM(lm, empty)
        assert refusal.value.reason == "bad_plan"
    bare = SteeredLM.create_from_arg_string("model=tiny-llama,plan=none", {"batch_size": "auto"})
    assert bare.manifest.plan is None
    full = SteeredLM.create_from_arg_string(
        f"model=tiny-llama,plan={plan},digest={digest[:20]},batch_size=2", {"batch_size": 8}
    )
    assert (full.manifest.plan, full.batch_size) == (digest, 2)
    for wrong in (f"plan={plan},digest={'0' * 64}", f"plan=none,digest={digest}"):
        with pytest.raises(Refused) as refusal:
            SteeredLM.create_from_arg_string(f"model=tiny-llama,{wrong}")
        assert refusal.value.reason == "wrong_plan"


def test_lm_eval_finds_the_class_by_name_once_registered(lm):
    assert register() == register() == "steer"
    assert get_model("steer") is SteeredLM
    made = get_model("steer").create_from_arg_obj({"model": "tiny-llama", "plan": None})
    asked = scoring([("a b", " c")])
    assert made.loglikelihood(asked) == SteeredLM(lm, "none").loglikelihood(asked)


def test_a_plan_for_given_rows_is_refused_whatever_the_size_of_a_batch(lm):
    v = torch.ones(lm.d_model)
    per_row = [steer.Add(SITE, v, torch.ones(5))]
    with pytest.raises(Refused, match="each of 5 rows"):
        SteeredLM(lm, per_row)
    with pytest.raises(Refused) as refusal:
        SteeredLM(lm, steer.Rows([steered(lm)]))
    assert refusal.value.reason == "bad_plan"
    with pytest.raises(Refused) as refusal:
        SteeredLM(lm, [steer.Add(SITE, torch.ones(3))])
    assert refusal.value.reason == "plan_does_not_fit"


def test_a_chat_is_rendered_by_the_tokenizers_own_template(lm):
    model = SteeredLM(lm, steered(lm))
    chat = [{"role": "user", "content": "a b"}]
    assert model.apply_chat_template(chat) == lm.chat(chat)
    going_on = model.apply_chat_template(
        [*chat, {"role": "assistant", "content": "because"}], add_generation_prompt=False
    )
    assert going_on.endswith("because")
    assert "tiny-llama" in model.tokenizer_name


def test_results_name_the_plan_and_records_show_what_it_did(lm, tmp_path: Path):
    plan = steered(lm)
    model = SteeredLM(lm, plan)
    info = model.get_model_info()
    assert info["plan_digest"] == plan_digest(plan)
    with open_log(tmp_path / "log.jsonl", model.manifest) as log:
        model.keep_in(log)
        model.loglikelihood(scoring([("the cat", " sat on the")]), disable_tqdm=True)
        model.generate_until(generating(["a b"], max_gen_toks=3))
    assert verify(tmp_path / "log.jsonl").ok
    text = (tmp_path / "log.jsonl").read_text()
    assert text.count('"kind":"generation"') == 2
    n = len(lm.rows(["the cat sat on the"])[0])
    assert f'"edited":{n - 1}' in text  # the last token is predicted, never read
