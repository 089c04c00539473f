"""The model API: every answer steered by the plan that its name promises, or an error."""

import asyncio
import atexit
import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import anyio
import sniffio
from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    ModelAPI,
    ModelInfo,
    ModelOutput,
    set_model_info,
)
from inspect_ai.model._model_call import ModelCall
from inspect_ai.tool import ToolChoice, ToolInfo

from steer.evals.audit import AuditLog, open_log
from steer.evals.batching import Answer, Guard, Shape, Ticket
from steer.evals.inspecting.chats import refuse_choice, rendered
from steer.evals.inspecting.engines import GATHER_S, acquired
from steer.evals.inspecting.options import guards_of, plan_in, refuse_options, row_of
from steer.evals.inspecting.outputs import output_of
from steer.evals.manifest import manifest_of
from steer.evals.naming import Named, parsed, plan_of
from steer.evals.refusals import Refused

MAX_ROWS = 32


class SteeredAPI(ModelAPI):
    """`steered/MODEL@DIGEST` with `-M plan=FILE`, or `steered/MODEL@base` for the plain model.

    Model arguments (`-M`): plan, guards (JSON), template (`raw` or Jinja), revision, dtype,
    max_rows (of a batch, 32), gather_s (how long a batch waits for the next sample), fixed_rows
    and fixed_width (the deterministic mode), audit (a file). Only JSON values: a live object would
    be taken for another one by Inspect's memo.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - Inspect's own signature
        *,
        plan: object = None,
        guards: object = None,
        template: str | None = None,
        revision: str | None = None,
        dtype: str | None = None,
        max_rows: int = MAX_ROWS,
        gather_s: float = GATHER_S,
        fixed_rows: int | None = None,
        fixed_width: int | None = None,
        audit: str | None = None,
    ) -> None:
        """Check the plan against the name and the model, before any sample runs.

        Raises:
            Refused: the name promises no plan or another one; the plan does not fit the model.
            ModelNotFound: the model is not on this machine.
        """
        super().__init__(model_name, base_url, api_key, [], config)
        self.lm_name, digest = parsed(model_name)
        self.named = plan_of(plan, digest)
        self.guards = _guards(guards)
        self.template = template
        shape = _shape(fixed_rows, fixed_width)
        self.engine, self._give_back = acquired(
            self.lm_name,
            revision=revision,
            dtype=dtype,
            max_rows=max_rows,
            gather_s=gather_s,
            shape=shape,
        )
        lm = self.engine.lm
        try:
            lm.registry.wire(list(self.named.plan))
            seeds = () if config.seed is None else (config.seed,)
            self.manifest = manifest_of(lm, list(self.named.plan), seeds=seeds)
            self.log: AuditLog | None = open_log(Path(audit), self.manifest) if audit else None
        except BaseException:
            self._give_back()
            raise
        # Inspect's command line ends without closing its models: the log would lack its end.
        atexit.register(self.close)
        # What Inspect is not told of a model it looks up by making the provider once more.
        room = getattr(lm.model.config, "max_position_embeddings", None)
        for name in (model_name, f"steered/{model_name}"):
            set_model_info(name, ModelInfo(context_length=room, family=self.lm_name))

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> tuple[ModelOutput | Exception, ModelCall]:
        """Return the steered answer, or the refusal for which this sample errs."""
        request: dict[str, object] = {
            "model": self.model_name,
            "messages": [message.model_dump(exclude_none=True) for message in input],
            "extra_body": dict(config.extra_body or {}),
        }
        try:
            refuse_options(config)
            seen = refuse_choice(tool_choice, tools)
            named, guards = plan_in(config.extra_body, self.named)
            lm = self.engine.lm
            ids = rendered(lm.tokenizer, input, seen, self.template)
            room = getattr(lm.model.config, "max_position_embeddings", None)
            asked = row_of(ids, config, named, self.guards if guards is None else guards, room)
            answer = await _awaited(self.engine.batcher.submit(asked))
            metadata = self._metadata(answer, named)
            output = output_of(
                answer, lm.tokenizer, ids, (self.model_name, seen, bool(config.logprobs)), metadata
            )
        except Refused as refusal:
            if self.log is not None:
                self.log.append("note", {"refused": refusal.reason, "message": str(refusal)})
            return refusal, ModelCall.create(request, {"refused": refusal.reason})
        if self.log is not None:
            self.log.append("generation", {**metadata, "verdict": answer.finish})
        return output, ModelCall.create({**request, "input_ids": ids}, metadata)

    def _metadata(self, answer: Answer, named: Named) -> dict[str, object]:
        """Return the proof that stands beside an answer."""
        return {
            "plan": named.digest,
            "manifest": self.manifest.digest,
            "receipt": [dict(did) for did in answer.did],
            "finish": answer.finish,
            "seed": answer.seed,
        }

    async def count_text_tokens(self, text: str) -> int:
        """Count by the model's own tokenizer."""
        return len(await self.tokenize(text))

    async def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        found = self.engine.lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(i) for i in cast("list[int]", found)]

    def connection_key(self) -> str:
        """Name the model: all plans share its batches."""
        return self.lm_name

    def max_connections(self) -> int:
        """Let the next batch wait while one runs."""
        return 2 * self.engine.batcher.max_rows

    def should_retry(self, ex: Exception) -> bool:  # noqa: ARG002 - a refusal stays one
        """Never: the same request is refused again."""
        return False

    def model_family(self) -> str:
        """Name the model without its plan."""
        return self.lm_name

    def close(self) -> None:
        """Give the model back and end the audit log."""
        atexit.unregister(self.close)
        if self.log is not None:
            self.log.close()
        self._give_back()


async def _awaited(ticket: Ticket) -> Answer:
    """Wait for a row without asking again and again; who stops waiting takes it back."""
    if sniffio.current_async_library() != "asyncio":
        return await anyio.to_thread.run_sync(ticket.future.result)
    done, loop = anyio.Event(), asyncio.get_running_loop()
    ticket.future.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
    try:
        await done.wait()
    except BaseException:
        ticket.cancel()
        raise
    return ticket.future.result()


def _guards(given: object) -> tuple[Guard, ...]:
    if given is None:
        return ()
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise Refused("bad_request", f"guards={given!r} is not JSON: {error}.") from None
    return guards_of([given] if isinstance(given, Mapping) else given)


def _shape(rows: int | None, width: int | None) -> Shape | None:
    if rows is None and width is None:
        return None
    if rows is None or width is None:
        raise Refused(
            "bad_request",
            f"fixed_rows is {rows} and fixed_width {width}: a fixed shape needs both.",
        )
    return Shape(rows, width)
