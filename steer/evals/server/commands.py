"""`steer serve`: the server on loopback, until it is told to stop."""

import argparse
import ipaddress
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from steer.evals.audit import open_log
from steer.evals.batching import Batcher, Shape
from steer.evals.manifest import manifest_of
from steer.evals.refusals import Refused
from steer.evals.server.plans import Settings, read_plans
from steer.lm import load

HOST, PORT = "127.0.0.1", 8000


def serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `steer serve --model NAME --plans FOLDER`."""
    parser = commands.add_parser("serve", help="answer OpenAI's requests under registered plans")
    add = parser.add_argument
    add("--model", required=True, help="an embedded name or a folder; nothing is downloaded")
    add("--plans", required=True, type=Path, help="a folder of files of steer.save")
    add("--name", help="of the model in requests; its own by default")
    add("--host", default=HOST)
    add("--port", type=int, default=PORT)
    add("--token-file", type=Path, help="holds the bearer token; needed beyond loopback")
    add("--max-rows", type=int, default=32, help="of a batch")
    add("--queue", type=int, default=256, help="requests that may wait; more are answered 429")
    add("--timeout", type=float, default=120.0, help="seconds of a request")
    add("--max-tokens", type=int, default=1024, help="new tokens of an answer at most")
    add("--fixed-rows", type=int, help="the deterministic mode: rows of every batch")
    add("--fixed-width", type=int, help="and tokens of a prompt at most")
    add("--allow-base", action="store_true", help="`base`, the model as it is, may be asked for")
    add("--audit", type=Path, help="a new log, with a record of every answer and refusal")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Serve until a signal ends it, and give everything back."""
    token = read_token(given.token_file, given.host)
    # FastAPI and uvicorn are in the extra `serve`.
    try:
        import uvicorn

        from steer.evals.server.app import make_app
    except ImportError as error:
        raise Refused(
            "bad_request", f"The server needs {error.name}. pip install manifold-steer[serve]"
        ) from None
    shape = None
    if given.fixed_rows is not None or given.fixed_width is not None:
        shape = Shape(given.fixed_rows or 0, given.fixed_width or 0)
    lm = load(given.model, allow_download=False)
    plans = read_plans(lm, given.plans, model=given.name or given.model, base=given.allow_base)
    settings = Settings(token, given.timeout, max_tokens=given.max_tokens)
    with ExitStack() as stack:
        log = None
        if given.audit is not None:
            log = stack.enter_context(open_log(given.audit, manifest_of(lm)))
        batcher = Batcher(lm, max_rows=given.max_rows, max_waiting=given.queue, shape=shape)
        stack.callback(lambda: batcher.close(drain=False))
        for name, named in plans.by_name.items():
            sys.stdout.write(f"{plans.model}@{name}  {named.digest}\n")
        sys.stdout.write(f"http://{given.host}:{given.port}/v1\n")
        sys.stdout.flush()
        app = make_app(batcher, plans, settings, log)
        stack.enter_context(_ended_by_signals())
        uvicorn.run(app, host=given.host, port=given.port, log_level="warning")
    return 0


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End the block in order at SIGTERM and SIGINT.

    uvicorn answers what is at work, then raises the signal again; by default SIGTERM would end the
    process there, before the log has its end.
    """

    def leave(number: int, frame: object) -> None:
        del number, frame
        raise _Told

    kept = {one: signal.signal(one, leave) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except _Told:
        return
    finally:
        for one, handler in kept.items():
            signal.signal(one, handler)


class _Told(BaseException):
    """A signal that told the server to stop; no Exception, so that nobody on the way takes it."""


def read_token(file: Path | None, host: str) -> str | None:
    """Return the token of a file.

    Raises:
        Refused: bad_request, for an address beyond loopback without a token, or an empty one.
    """
    if file is not None:
        token = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
        if len(token) < 16:
            raise Refused(
                "bad_request",
                f"{file} holds a token of {len(token)} characters. Anybody could guess it: give "
                "16 or more.",
            )
        return token
    if not _is_loopback(host):
        raise Refused(
            "bad_request",
            f"The host {host} can be reached from elsewhere, and no token is asked of anybody. "
            "Give --token-file, or listen on 127.0.0.1.",
        )
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
