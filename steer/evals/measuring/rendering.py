"""From items to token rows of a model: contexts, options, requests."""

from collections.abc import Sequence

from steer.evals.tasks.items import Choice, Format, Prompt
from steer.lm import LM

Row = list[int]


def context(lm: LM, item: Choice, form: Format, instruction: str = "") -> Row:
    """Return the tokens of a question, up to where an option begins.

    With form "chat" it is a user's turn of the model's own template, where it has one, and "plain"
    text otherwise. An instruction stands before the question, as not every template has a system.
    """
    asked = f"{instruction}\n\n{item.question}" if instruction else item.question
    if form == "chat" and has_template(lm):
        return [*_turn(lm, asked), *_tokens(lm, item.lead)]
    text = f"{asked}\nAnswer: {item.lead}" if item.lead else asked
    return lm.rows([text])[0]


def options(lm: LM, item: Choice) -> list[Row]:
    """Return the tokens of each option, cut on its own as in `lm.score`."""
    return [_tokens(lm, option) for option in item.options]


def request(lm: LM, prompt: Prompt) -> Row:
    """Return the tokens of a request, ready for an answer."""
    if has_template(lm):
        return _turn(lm, prompt.text)
    return lm.rows([f"Question: {prompt.text}\nAnswer:"])[0]


def has_template(lm: LM) -> bool:
    """Whether the model has a chat template."""
    return getattr(lm.tokenizer, "chat_template", None) is not None


def passage(lm: LM, text: str, *, most: int) -> Row:
    """Return the tokens of a held-out text, at most so many."""
    return lm.rows([text])[0][:most]


def _turn(lm: LM, text: str) -> Row:
    messages: Sequence[dict[str, str]] = [{"role": "user", "content": text}]
    return lm.rows([messages])[0]


def _tokens(lm: LM, text: str) -> Row:
    if not text:
        return []
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]
