"""An answer of the batcher as Inspect's output: text, tool calls, log-probabilities, evidence."""

from collections.abc import Mapping, Sequence
from typing import Literal

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    Logprob,
    Logprobs,
    ModelOutput,
    ModelUsage,
    TopLogprob,
)
from inspect_ai.model._providers.util import HFHandler  # parses the tool calls of many families
from inspect_ai.tool import ToolInfo
from transformers import PreTrainedTokenizerBase

from steer.evals.batching import Answer
from steer.evals.refusals import Refused

STOPS: Mapping[str, Literal["stop", "max_tokens", "content_filter"]] = {
    "stop": "stop",
    "length": "max_tokens",
    "guarded": "content_filter",
}


def output_of(
    answer: Answer,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    asked: tuple[str, Sequence[ToolInfo], bool],
    metadata: Mapping[str, object],
) -> ModelOutput:
    """Return Inspect's output.

    Args:
        answer: of the row.
        tokenizer: to name tokens.
        ids: of the prompt.
        asked: the model's name, the tools that it saw, whether log-probabilities are wanted.
        metadata: what stands beside the answer.
    """
    name, tools, wants_logprobs = asked
    choice = ChatCompletionChoice(
        message=_message(answer, name, tools),
        stop_reason=STOPS[answer.finish],
        logprobs=_logprobs(answer, tokenizer) if wants_logprobs else None,
        prompt_logprobs=_prompt(answer, tokenizer, ids),
    )
    n_new = len(answer.tokens)
    return ModelOutput(
        model=name,
        choices=[choice],
        usage=ModelUsage(
            input_tokens=answer.n_prompt,
            output_tokens=n_new,
            total_tokens=answer.n_prompt + n_new,
        ),
        metadata=dict(metadata),
    )


def _message(answer: Answer, name: str, tools: Sequence[ToolInfo]) -> ChatMessageAssistant:
    if not tools:
        return ChatMessageAssistant(content=answer.text, model=name, source="generate")
    try:
        return HFHandler(name).parse_assistant_response(answer.text, list(tools))
    except ValueError as error:
        raise Refused(
            "unsupported_option",
            f"The tool calls of {name} could not be read: {error} Leave the tools out.",
        ) from None


def _logprobs(answer: Answer, tokenizer: PreTrainedTokenizerBase) -> Logprobs:
    content = []
    for at, (token, value) in enumerate(zip(answer.tokens, answer.log_probs, strict=True)):
        one = _scored(tokenizer, token, value)
        likeliest = [_scored(tokenizer, *pair) for pair in answer.top[at]] if answer.top else []
        tops = [TopLogprob(token=o.token, bytes=o.bytes, logprob=o.logprob) for o in likeliest]
        content.append(one.model_copy(update={"top_logprobs": tops or None}))
    return Logprobs(content=content)


def _prompt(
    answer: Answer, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]
) -> Logprobs | None:
    if answer.prompt_log_probs is None:
        return None
    pairs = zip(ids[1:], answer.prompt_log_probs, strict=True)
    return Logprobs(content=[_scored(tokenizer, token, value) for token, value in pairs])


def _scored(tokenizer: PreTrainedTokenizerBase, token: int, value: float) -> Logprob:
    text = str(tokenizer.decode([token]))
    return Logprob(token=text, bytes=list(text.encode()), logprob=value)
