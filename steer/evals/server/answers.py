"""Answers in OpenAI's form, with the proof beside them; refusals in the form of its errors."""

import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Literal

from transformers import PreTrainedTokenizerBase

from steer.evals.batching import Answer
from steer.evals.naming import Named
from steer.evals.refusals import Refused

Kind = Literal["chat", "text"]
LEAST = -9999.0
"""In place of minus infinity, which JSON does not have; OpenAI's own number for it."""
FINISH: Mapping[str, str] = {"stop": "stop", "length": "length", "guarded": "content_filter"}
OBJECTS: Mapping[Kind, tuple[str, str]] = {
    "chat": ("chat.completion", "chat.completion.chunk"),
    "text": ("text_completion", "text_completion"),
}
STATUS: Mapping[str, int] = {
    "unauthorized": 401,
    "unknown_model": 404,
    "unknown_plan": 404,
    "timed_out": 408,
    "wrong_plan": 409,
    "too_large": 413,
    "never_fired": 422,
    "not_finite": 422,
    "plan_does_not_fit": 422,
    "queue_full": 429,
    "pass_failed": 500,
    "shutting_down": 503,
}
"""By reason; every other one is 400."""


def status_of(refusal: Refused) -> int:
    """Return the HTTP status of a refusal."""
    return STATUS.get(refusal.reason, 400)


def error_of(refusal: Refused) -> dict[str, object]:
    """Return a refusal as the body of an error."""
    status = status_of(refusal)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {"message": str(refusal), "type": kind, "param": None, "code": refusal.reason}
    return {"error": body}


def whole(
    kind: Kind,
    answer: Answer,
    named: Named,
    head: Mapping[str, object],
    logprobs: Mapping[str, object] | None,
) -> dict[str, object]:
    """Return the body of an answer that is not streamed."""
    said: dict[str, object] = {"index": 0, "finish_reason": FINISH[answer.finish]}
    if kind == "chat":
        said |= {"message": {"role": "assistant", "content": answer.text}, "logprobs": logprobs}
    else:
        said |= {"text": answer.text, "logprobs": logprobs}
    made = {**head, "object": OBJECTS[kind][0], "choices": [said]}
    return {**made, "usage": usage(answer), "steer": proof(answer, named)}


def piece(kind: Kind, text: str, head: Mapping[str, object]) -> dict[str, object]:
    """Return one chunk of a stream."""
    said: dict[str, object] = {"index": 0, "finish_reason": None, "logprobs": None}
    said |= {"delta": {"role": "assistant", "content": text}} if kind == "chat" else {"text": text}
    return {**head, "object": OBJECTS[kind][1], "choices": [said]}


def last(
    kind: Kind, answer: Answer, named: Named, head: Mapping[str, object], *, counted: bool
) -> list[dict[str, object]]:
    """Return the last chunks of a stream: why it ended, and what it cost."""
    said: dict[str, object] = {"index": 0, "finish_reason": FINISH[answer.finish]}
    said |= {"logprobs": None, **({"delta": {}} if kind == "chat" else {"text": ""})}
    top = {**head, "object": OBJECTS[kind][1]}
    made: list[dict[str, object]] = [{**top, "choices": [said], "steer": proof(answer, named)}]
    if counted:
        made.append({**top, "choices": [], "usage": usage(answer)})
    return made


def head_of(kind: Kind, model: str, name: str) -> dict[str, object]:
    """Return what every part of an answer begins with."""
    prefix = "chatcmpl" if kind == "chat" else "cmpl"
    return {"id": f"{prefix}-{name}", "created": int(time.time()), "model": model}


def usage(answer: Answer) -> dict[str, int]:
    """Return the model's own counts."""
    n_new = len(answer.tokens)
    counts = {"prompt_tokens": answer.n_prompt, "completion_tokens": n_new}
    return {**counts, "total_tokens": answer.n_prompt + n_new}


def proof(answer: Answer, named: Named) -> dict[str, object]:
    """Return what stands beside an answer: the plan, what it did, the seed."""
    return {
        "plan": named.digest,
        "receipt": [dict(did) for did in answer.did],
        "seed": answer.seed,
        "finish": answer.finish,
    }


def chat_logprobs(answer: Answer, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """Return log-probabilities in the form of chats."""
    content = []
    for at, (token, value) in enumerate(zip(answer.tokens, answer.log_probs, strict=True)):
        tops = answer.top[at] if answer.top else []
        likeliest = [_scored(tokenizer, other, its) for other, its in tops]
        content.append({**_scored(tokenizer, token, value), "top_logprobs": likeliest})
    return {"content": content, "refusal": None}


def text_logprobs(answer: Answer, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """Return log-probabilities in the form of completions."""
    tokens = [str(tokenizer.decode([token])) for token in answer.tokens]
    offsets = [0, *accumulate(len(token) for token in tokens)][: len(tokens)]
    tops = [{str(tokenizer.decode([t])): max(v, LEAST) for t, v in place} for place in answer.top]
    return {
        "tokens": tokens,
        "token_logprobs": list(answer.log_probs),
        "top_logprobs": tops or None,
        "text_offset": offsets,
    }


def _scored(tokenizer: PreTrainedTokenizerBase, token: int, value: float) -> dict[str, object]:
    text = str(tokenizer.decode([token]))
    return {"token": text, "logprob": max(value, LEAST), "bytes": list(text.encode())}


def models(model: str, names: Sequence[str]) -> dict[str, object]:
    """Return the list of what may be asked for."""
    listed = [
        {"id": f"{model}@{name}", "object": "model", "created": 0, "owned_by": "manifold-steer"}
        for name in names
    ]
    return {"object": "list", "data": listed}
