"""The model class for lm-eval: every score and every text under the plan, or a refusal."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.models.utils import resolve_max_length

from steer.errors import PlanError
from steer.evals.audit import AuditLog
from steer.evals.harness import arguments, caching
from steer.evals.harness.answering import answers_in_batches
from steer.evals.harness.requests import Room, cut_context, named, rows_of, windows_of
from steer.evals.harness.spans import MAX_TOKENS, scored_in_batches
from steer.evals.manifest import manifest_of
from steer.evals.refusals import Refused
from steer.lm import LM

MAX_GEN_TOKS = 256
"""As lm-eval's own model, where a task does not say."""
Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""The texts (None for a window of a rolling one), context and continuation."""


class SteeredLM(TemplateLM):
    """A model under a plan, for `lm_eval.simple_evaluate(model=...)`.

    The context is the prompt and the continuation counts as generated, as in `lm.score`. Texts that
    are longer than the model reads are cut on the left, as lm-eval's own model cuts them, unless
    the plan counts tokens from the front; then they are refused. Each request's sampling has a seed
    of its own (`settings.seed_of`).
    """

    def __init__(
        self,
        lm: LM,
        plan: object,
        *,
        batch_size: int | None = None,
        max_tokens: int = MAX_TOKENS,
        max_length: int | None = None,
        max_gen_toks: int = MAX_GEN_TOKS,
        seed: int = 0,
        add_bos_token: bool | None = None,
    ) -> None:
        """Check the plan against the model, and hash its weights once.

        Args:
            lm: the model.
            plan: a list of interventions; the word "none" asks for the model as it is.
            batch_size: rows of a pass at most.
            max_tokens: padded tokens of a scoring pass.
            max_length: tokens that the model reads; None is what its config says.
            max_gen_toks: new tokens where a task does not say.
            seed: of all sampling.
            add_bos_token: whether texts begin with special tokens; None as the tokenizer does it.

        Raises:
            Refused: bad_plan, plan_does_not_fit, bad_request.
        """
        super().__init__()
        self.steered = lm
        self.plan = arguments.checked_plan(lm, plan)
        self.tokenizer = lm.tokenizer
        self._device = lm.device
        self._rows, self._tokens = batch_size, max_tokens
        self._log: AuditLog | None = None
        self._bos = add_bos_token
        length = max_length or resolve_max_length(lm.model.config, lm.tokenizer)  # type: ignore[arg-type]
        self.room = Room(length, max_gen_toks, seed, _first_token(lm))
        self.manifest = manifest_of(lm, list(self.plan) or None, seeds=(seed,))
        self.identity = caching.identity_of(
            self.manifest,
            {"room": dataclasses.asdict(self.room), "add_bos_token": add_bos_token},
        )

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, object] | None = None
    ) -> "SteeredLM":
        """Return what `model=NAME,plan=FILE[,digest=HEX][,batch_size=N]...` means.

        Raises:
            Refused: see `steer.evals.harness.arguments`.
        """
        return cls.of(arguments.of_string(arg_string, additional_config or {}))

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, object], additional_config: dict[str, object] | None = None
    ) -> "SteeredLM":
        """Return what a dict of the same arguments means."""
        return cls.of(arguments.of_mapping(arg_dict, additional_config or {}))

    @classmethod
    def of(cls, said: arguments.Arguments) -> "SteeredLM":
        """Load the model and the plan that arguments name."""
        lm = arguments.model_of(said)
        plan = arguments.plan_of(said, lm)
        return cls(
            lm,
            plan or "none",
            batch_size=said.batch_size,
            max_tokens=said.max_tokens or MAX_TOKENS,
            max_length=said.max_length,
            max_gen_toks=said.max_gen_toks or MAX_GEN_TOKS,
            seed=said.seed or 0,
            add_bos_token=said.add_bos_token,
        )

    # -- what lm-eval asks of a model ------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return cast("int", self.steered.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before an empty context: BOS, else the end token."""
        return self.room.prefix

    @property
    def max_length(self) -> int:
        """How many tokens the model reads."""
        return self.room.max_length

    @property
    def max_gen_toks(self) -> int:
        """New tokens where a task does not say."""
        return self.room.max_gen_toks

    @property
    def batch_size(self) -> int | str:
        """Rows of a pass at most; `auto`, where the number of tokens alone bounds it."""
        return self._rows or "auto"

    @property
    def tokenizer_name(self) -> str:
        """Names the request cache of chats, by model and template."""
        template = str(self.manifest.tokenizer.get("chat_template"))[:12]
        return f"{self.steered.provenance.name}__{template}".replace("/", "__")

    def keep_in(self, log: AuditLog | None) -> None:
        """Write a record of each answer that is computed (not of those from a cache)."""
        self._log = log

    def get_model_info(self) -> dict[str, object]:
        """Return what lm-eval writes beside its results: plan, digest and manifest."""
        return {
            "model_source": self.steered.provenance.name,
            "plan": [repr(item) for item in self.plan] or arguments.NONE,
            "plan_digest": self.manifest.plan,
            "manifest": self.manifest.to_json(),
        }

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take the hook of lm-eval's answer cache, if the cache is this run's own.

        Raises:
            Refused: wrong_cache.
        """
        if cache_hook.dbdict is not None:
            kept = cache_hook.dbdict
            caching.stamp(Path(str(kept.filename)), kept.tablename, self.identity)
        super().set_cache_hook(cache_hook)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Return token ids; a text that brings its BOS token gets no second one."""
        special = self._bos if add_special_tokens is None else add_special_tokens
        begun = self.steered.tokenizer.decode([self.room.prefix])
        if add_special_tokens is None and string.startswith(str(begun)):
            special = False
        tokenizer = self.steered.tokenizer
        if special is None:
            return [int(i) for i in tokenizer.encode(string)]
        return [int(i) for i in tokenizer.encode(string, add_special_tokens=special)]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a chat as text; without a generation prompt its last message is gone on with.

        Raises:
            Refused: bad_request, where the tokenizer has no template.
        """
        try:
            if add_generation_prompt:
                return self.steered.chat(chat_history)
            self.steered.chat(chat_history[:1])  # refuses a tokenizer without a template
        except PlanError as error:
            raise Refused("bad_request", str(error)) from None
        text = self.steered.tokenizer.apply_chat_template(
            chat_history, tokenize=False, continue_final_message=True
        )
        return cast("str", text)

    # -- scores and texts ------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        return self._scored([(text, context, tail) for text, context, tail in requests])

    def _scored(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        contexts = [cut_context(given, tail, self.plan, self.room) for _, given, tail in requests]
        tails = [tail for *_, tail in requests]
        found: dict[int, tuple[float, bool]] = {}
        for batch in scored_in_batches(
            self.steered,
            contexts,
            tails,
            list(self.plan),
            max_tokens=self._tokens,
            max_rows=self._rows,
        ):
            for at, score in batch.items():
                found[at] = (score.log_prob, score.greedy)
                text = requests[at][0]
                if text is not None:
                    self.cache_hook.add_partial("loglikelihood", text, found[at])
                name = named("loglikelihood", text or (contexts[at], tails[at]))
                self._record(name, score.did, {"log_prob": score.log_prob})
        return [found[at] for at in range(len(requests))]

    def loglikelihood_rolling(
        self,
        requests: Sequence[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002 - of the base class
    ) -> list[float]:
        """Return the log-probability of whole texts, in windows of what the model reads.

        In each window the tokens that are there for context only count as the prompt.
        """
        windows = [
            (at, context, tail)
            for at, request in enumerate(requests)
            for context, tail in windows_of(self.tok_encode(request.args[0]), self.plan, self.room)
        ]
        scores = self._scored([(None, context, tail) for _, context, tail in windows])
        sums = [0.0] * len(requests)
        for (at, *_), (log_prob, _) in zip(windows, scores, strict=True):
            sums[at] += log_prob
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(
        self,
        requests: Sequence[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002 - of the base class
    ) -> list[str]:
        """Return the text of each request up to its first stop string."""
        asked = [cast("tuple[str, object]", request.args) for request in requests]
        lm = self.steered
        rows, settings = rows_of(asked, self.tok_encode, self.plan, self.room, model=lm.model)
        texts: dict[int, str] = {}
        for batch in answers_in_batches(lm, rows, settings, max_rows=self._rows):
            for at, answer in batch.items():
                texts[at] = answer.text
                if settings[at].temperature == 0:  # lm-eval keeps no sampled text either
                    self.cache_hook.add_partial("generate_until", asked[at], answer.text)
                said = {"finish": answer.finish, "seed": answer.seed}
                self._record(named("generate_until", asked[at]), answer.did, said)
        return [texts[at] for at in range(len(requests))]

    def _record(
        self, sample: str, did: Iterable[Mapping[str, object]], said: Mapping[str, object]
    ) -> None:
        if self._log is not None:
            body = {"plan": self.manifest.plan, "sample": sample, "did": list(did)}
            self._log.append("generation", {**body, "verdict": "", "extra": dict(said)})


def _first_token(lm: LM) -> int:
    for token in (lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise Refused(
        "bad_request",
        f"The tokenizer of {lm.provenance.name} has neither a BOS nor an end token, so a text "
        "without context could not be scored. Give it one of them.",
    )
