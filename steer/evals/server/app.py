"""The FastAPI application: a request becomes a row of a batch, its answer OpenAI's form."""

import asyncio
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from jinja2 import TemplateError
from pydantic import ValidationError
from starlette.responses import Response

from steer.errors import SteerError
from steer.evals.audit import AuditLog
from steer.evals.batching import Answer, Asked, Batcher, Ticket
from steer.evals.naming import Named
from steer.evals.refusals import Refused
from steer.evals.server import answers
from steer.evals.server.answers import Kind
from steer.evals.server.plans import Plans, Settings
from steer.evals.server.schema import Chat, Completion, Generation

DEFAULT_TOKENS = 256
Form = TypeVar("Form", bound=Generation)


def make_app(
    batcher: Batcher, plans: Plans, settings: Settings, log: AuditLog | None = None
) -> FastAPI:
    """Return the application of a batcher; closing it is whoever made it.

    Args:
        batcher: runs the rows.
        plans: what may be asked for.
        settings: what is allowed.
        log: gets a record of every answer and refusal; an answer that cannot be recorded is not
            given, and a stream that cannot be ends as an error.
    """
    server = _Server(batcher, plans, settings, log)
    app = FastAPI(title="manifold-steer", openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/health")
    async def health() -> dict[str, object]:
        return {"status": "ok", "model": plans.model}

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        return await server.guarded(request, server.models)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await server.guarded(request, server.chat)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await server.guarded(request, server.completion)

    return app


class _Server:
    """What the routes share."""

    def __init__(
        self, batcher: Batcher, plans: Plans, settings: Settings, log: AuditLog | None
    ) -> None:
        self.batcher, self.plans, self.settings, self.log = batcher, plans, settings, log
        self.tokenizer = batcher.lm.tokenizer

    async def guarded(
        self, request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """Return the answer, or the refusal in the form of an error."""
        try:
            self._authorize(request)
            return await answer(request)
        except Refused as refusal:
            return self._refused(refusal)
        except SteerError as error:
            return self._refused(Refused("bad_request", str(error)))
        except Exception as error:  # no client is to see a traceback, nor an answer
            return self._refused(_failed(error))

    async def models(self, request: Request) -> Response:  # noqa: ARG002 - of a route's form
        """Return what may be asked for."""
        return JSONResponse(answers.models(self.plans.model, list(self.plans.by_name)))

    async def chat(self, request: Request) -> Response:
        """Answer a chat."""
        said = await self._said(request, Chat)
        if not getattr(self.tokenizer, "chat_template", None):
            raise Refused(
                "unsupported_option",
                f"{self.plans.model} has no chat template. Use /v1/completions.",
            )
        messages = [{"role": one.role, "content": one.content} for one in said.messages]
        try:
            ids = self.batcher.lm.rows([messages])[0]
        except TemplateError as error:
            raise Refused(
                "bad_request", f"The model's chat template refuses these messages: {error}."
            ) from None
        top = (said.top_logprobs or 0) if said.logprobs else 0
        if said.top_logprobs and not said.logprobs:
            raise Refused("bad_request", "top_logprobs without logprobs: set logprobs to true.")
        return await self._answered(
            request, "chat", said, ids, said.max_completion_tokens or said.max_tokens, top
        )

    async def completion(self, request: Request) -> Response:
        """Answer a completion."""
        said = await self._said(request, Completion)
        ids = self.batcher.lm.rows([said.prompt])[0]  # type: ignore[list-item]
        return await self._answered(request, "text", said, ids, said.max_tokens, said.logprobs or 0)

    async def _answered(
        self,
        request: Request,
        kind: Kind,
        said: Generation,
        ids: list[int],
        n_new: int | None,
        top: int,
    ) -> Response:
        named = self.plans.named(said.model, said.plan, said.digest)
        most = self.settings.max_tokens
        if n_new is not None and n_new > most:
            raise Refused("too_long", f"max_tokens is {n_new}; this server gives {most} at most.")
        asked = Asked(
            ids,
            named.plan,
            min(most, DEFAULT_TOKENS) if n_new is None else n_new,
            said.sampling,
            said.stops,
            said.watched,
            top=top,
        )
        head = answers.head_of(kind, said.model, secrets.token_hex(12))
        if said.stream:
            if getattr(said, "logprobs", None):
                raise Refused(
                    "unsupported_option", "logprobs are not streamed here: set stream to false."
                )
            return self._streamed(kind, said, named, asked, head)
        ticket = self.batcher.submit(asked)
        answer = await self._awaited(request, ticket)
        logprobs = None
        if getattr(said, "logprobs", None) not in (None, False):
            form = answers.chat_logprobs if kind == "chat" else answers.text_logprobs
            logprobs = form(answer, self.tokenizer)
        self._record(head, answer, named)
        return JSONResponse(answers.whole(kind, answer, named, head, logprobs))

    async def _awaited(self, request: Request, ticket: Ticket) -> Answer:
        """Wait for a row, no longer than allowed, and only while its client does."""
        row = asyncio.wrap_future(ticket.future)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            done, _ = await asyncio.wait(
                {row, gone}, timeout=self.settings.timeout_s, return_when="FIRST_COMPLETED"
            )
        finally:
            gone.cancel()
            if not row.done():
                ticket.cancel()
        if row not in done:
            raise self._late()
        return row.result()

    def _streamed(
        self,
        kind: Kind,
        said: Generation,
        named: Named,
        asked: Asked,
        head: Mapping[str, object],
    ) -> StreamingResponse:
        """Begin a stream; what is refused before the first token is an error, not a stream."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def put(text: str | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, text)

        ticket = self.batcher.submit(asked, put)
        ticket.future.add_done_callback(lambda _: put(None))
        counted = said.stream_options is not None and said.stream_options.include_usage

        async def events() -> AsyncIterator[str]:
            try:
                async with asyncio.timeout(self.settings.timeout_s):
                    while (text := await pieces.get()) is not None:
                        yield _event(answers.piece(kind, text, head))
                    answer = ticket.future.result()
                self._record(head, answer, named)
                for chunk in answers.last(kind, answer, named, head, counted=counted):
                    yield _event(chunk)
                yield "data: [DONE]\n\n"
            except TimeoutError:
                self._note(self._late())
                yield _event(answers.error_of(self._late()))
            except Exception as error:  # the stream has begun: its error is an event of it
                refusal = error if isinstance(error, Refused) else _failed(error)
                self._note(refusal)
                yield _event(answers.error_of(refusal))
            finally:
                if not ticket.future.done():
                    ticket.cancel()

        return StreamingResponse(events(), media_type="text/event-stream")

    def _authorize(self, request: Request) -> None:
        token = self.settings.token
        if token is None:
            return
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise Refused("unauthorized", "The bearer token is missing or wrong.")

    async def _said(self, request: Request, form: type[Form]) -> Form:
        """Return the body, if it is JSON of the right form, not too large and not too slow."""
        data = bytearray()
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > self.settings.max_body:
                        most = self.settings.max_body
                        raise Refused("too_large", f"The request has more than {most} bytes.")
        except TimeoutError:
            raise self._late() from None
        try:
            return form.model_validate(json.loads(bytes(data)))
        except ValidationError as error:
            raise _invalid(error) from None
        except (ValueError, RecursionError) as error:
            raise Refused("bad_request", f"The body is not JSON: {error}.") from None

    def _late(self) -> Refused:
        return Refused(
            "timed_out",
            f"There was no answer within {self.settings.timeout_s:g} s. Ask for fewer tokens.",
        )

    def _refused(self, refusal: Refused) -> JSONResponse:
        self._note(refusal)
        return JSONResponse(answers.error_of(refusal), status_code=answers.status_of(refusal))

    def _note(self, refusal: Refused) -> None:
        if self.log is None:
            return
        # A refusal gives nothing away, so it goes out where the log cannot be written.
        with suppress(Refused, OSError):
            self.log.append("note", {"refused": refusal.reason, "message": str(refusal)})

    def _record(self, head: Mapping[str, object], answer: Answer, named: Named) -> None:
        if self.log is not None:
            body = {**answers.proof(answer, named), "sample": head["id"], "verdict": answer.finish}
            self.log.append("generation", body)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _failed(error: Exception) -> Refused:
    return Refused("pass_failed", f"There is no answer: {type(error).__name__}: {error}.")


def _invalid(error: ValidationError) -> Refused:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the body"
    if first["type"] == "extra_forbidden":
        return Refused(
            "unsupported_option",
            f"{where} is not honoured here, and would be ignored. Leave it out.",
        )
    return Refused("bad_request", f"{where}: {first['msg']}. Change it.")


def _event(body: Mapping[str, object]) -> str:
    return f"data: {json.dumps(body)}\n\n"
