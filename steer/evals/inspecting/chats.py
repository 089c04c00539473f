"""Messages and tools as the text that the model reads, by its own chat template."""

from collections.abc import Sequence
from typing import cast

from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageTool
from inspect_ai.tool import ToolChoice, ToolInfo
from transformers import PreTrainedTokenizerBase

from steer.evals.refusals import Refused

RAW = "raw"
"""In place of a template: the one message is the text, as base models read it."""


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[ChatMessage],
    tools: Sequence[ToolInfo],
    template: str | None,
) -> list[int]:
    """Return the token ids of a chat, ready for the assistant's answer.

    Args:
        tokenizer: the model's.
        messages: text only.
        tools: described to the model by its template.
        template: None for the model's own, RAW, or one in Jinja.

    Raises:
        Refused: unsupported_option, for a picture or a sound, for tools that the template does not
            mention, and for a chat without a template.
    """
    if template == RAW:
        return _raw(tokenizer, messages, tools)
    jinja = template or cast("str | None", getattr(tokenizer, "chat_template", None))
    if not jinja:
        raise Refused(
            "unsupported_option",
            "This model has no chat template, so how it would read a chat cannot be known. Pass "
            "-M template=raw to give it the message as plain text, or a template in Jinja.",
        )
    if tools and "tools" not in str(jinja):
        raise Refused(
            "unsupported_option",
            f"{len(tools)} tools are given, and this model's chat template does not mention tools: "
            "it would drop them in silence. Use a model whose template has them, or pass one.",
        )
    ids = tokenizer.apply_chat_template(
        [_message(one) for one in messages],  # type: ignore[arg-type]
        tools=[_tool(tool) for tool in tools] or None,  # type: ignore[arg-type]
        chat_template=template,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    return [int(i) for i in cast("Sequence[int]", ids)]


def _raw(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[ChatMessage],
    tools: Sequence[ToolInfo],
) -> list[int]:
    if len(messages) != 1 or tools:
        raise Refused(
            "unsupported_option",
            f"template=raw reads one message as plain text, and here are {len(messages)} messages "
            f"and {len(tools)} tools. How to join them is what a template says: pass one.",
        )
    found = cast("Sequence[int]", tokenizer(_text(messages[0]))["input_ids"])
    return [int(i) for i in found]


def _message(message: ChatMessage) -> dict[str, object]:
    made: dict[str, object] = {"role": message.role, "content": _text(message)}
    if isinstance(message, ChatMessageAssistant) and message.tool_calls:
        made["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.function, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if isinstance(message, ChatMessageTool):
        made["name"], made["tool_call_id"] = message.function, message.tool_call_id
    return made


def _text(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    other = sorted({part.type for part in message.content} - {"text", "reasoning"})
    if other:
        raise Refused(
            "unsupported_option",
            f"A {message.role} message holds {', '.join(other)}, and this provider reads text. "
            "Leave it out.",
        )
    return message.text


def _tool(tool: ToolInfo) -> dict[str, object]:
    return {
        "type": "function",
        "function": tool.model_dump(
            include={"name", "description", "parameters"}, exclude_none=True
        ),
    }


def refuse_choice(choice: ToolChoice, tools: Sequence[ToolInfo]) -> list[ToolInfo]:
    """Return the tools that the model may see.

    Raises:
        Refused: unsupported_option, for a tool that it must call: nothing here can make it.
    """
    if choice == "none" or not tools:
        return []
    if choice != "auto":
        raise Refused(
            "unsupported_option",
            f"tool_choice is {choice!r}: the model would have to call a tool, and its tokens are "
            'not constrained here. Use tool_choice="auto".',
        )
    return list(tools)
