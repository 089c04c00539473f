"""Messages and tools: what the model reads is what its template says, and nothing is dropped."""

import pytest
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentText,
)
from inspect_ai.tool import ToolCall, ToolFunction, ToolInfo, ToolParams

import steer
from steer.evals import Refused
from steer.evals.batching import Answer
from steer.evals.inspecting.chats import RAW, refuse_choice, rendered
from steer.evals.inspecting.outputs import output_of

TOOL = ToolInfo(name="add", description="Add two numbers.", parameters=ToolParams())
TEMPLATE = (
    "{% if tools %}{% for t in tools %}[{{ t['function']['name'] }}]{% endfor %}{% endif %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% for c in m.get('tool_calls', []) %}({{ c['function']['name'] }}"
    "{{ c['function']['arguments']['x'] }}){% endfor %}{% endfor %}<assistant>"
)


@pytest.fixture(scope="module")
def tokenizer():
    return steer.load("tiny-llama").tokenizer


def chat() -> list[ChatMessage]:
    call = ToolCall(id="1", function="add", arguments={"x": 3})
    return [
        ChatMessageSystem(content="be"),
        ChatMessageUser(content=[ContentText(text="one")]),
        ChatMessageAssistant(content="well", tool_calls=[call]),
        ChatMessageTool(content="4", tool_call_id="1", function="add"),
    ]


def test_roles_calls_and_results_reach_the_template(tokenizer):
    ids = rendered(tokenizer, chat(), [TOOL], TEMPLATE)
    text = "[add]<system>be<user>one<assistant>well(add3)<tool>4<assistant>"
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_models_own_template_is_that_of_its_tokenizer(tokenizer):
    messages: list[ChatMessage] = [ChatMessageUser(content="a b")]
    wanted = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a b"}], add_generation_prompt=True, return_dict=False
    )
    assert rendered(tokenizer, messages, [], None) == wanted


def test_raw_is_the_text_exactly_as_the_tokenizer_cuts_it(tokenizer):
    messages: list[ChatMessage] = [ChatMessageUser(content="a b")]
    assert rendered(tokenizer, messages, [], RAW) == tokenizer("a b")["input_ids"]
    with pytest.raises(Refused, match="4 messages"):
        rendered(tokenizer, chat(), [], RAW)


def test_what_would_be_dropped_in_silence_is_refused(tokenizer):
    plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(Refused, match="does not mention tools"):
        rendered(tokenizer, chat(), [TOOL], plain)
    picture = [ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA")])]
    with pytest.raises(Refused, match="holds image"):
        rendered(tokenizer, picture, [], TEMPLATE)


def test_a_tool_that_must_be_called_is_refused_and_none_is_none():
    assert refuse_choice("auto", [TOOL]) == [TOOL]
    assert refuse_choice("none", [TOOL]) == []
    for choice in ("any", ToolFunction(name="add")):
        with pytest.raises(Refused, match="not constrained"):
            refuse_choice(choice, [TOOL])


@pytest.mark.parametrize("name", ["tiny-llama@base", "qwen2.5-0.5b-instruct@base"])
def test_a_call_in_the_text_becomes_a_tool_call(tokenizer, name):
    body = '{"name": "add", "arguments": {"x": 3}}'
    text = body if "llama" in name else f"<tool_call>\n{body}\n</tool_call>"
    answer = Answer(text, (1,), (-0.5,), (), "stop", (), 2, None)
    output = output_of(answer, tokenizer, [1, 2], (name, [TOOL], False), {})
    (call,) = output.choices[0].message.tool_calls or []
    assert (call.function, call.arguments) == ("add", {"x": 3})
    without = output_of(answer, tokenizer, [1, 2], (name, [], False), {})
    assert without.choices[0].message.tool_calls is None
