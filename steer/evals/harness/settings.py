"""What a generation request of lm-eval's asks, as a row of a batch; the rest is refused by name."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from steer.errors import did_you_mean
from steer.evals.batching.asked import GREEDY, Asked, Sampling
from steer.evals.refusals import Refused
from steer.generating import option_of
from steer.protocols import Intervention

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names under which tasks say how many new tokens they want."""
HONOURED = frozenset({"until", "do_sample", "temperature", "top_k", "top_p", *LENGTHS})
NEUTRAL: Mapping[str, object] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "use_cache": True,
}
"""What some tasks say though it changes nothing; any other value is refused."""
HF_TOP_K = 50
"""transformers samples from so many where neither the request nor the model says."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How one request generates; requests with equal settings share batches."""

    max_new_tokens: int
    stop: tuple[str, ...]
    temperature: float
    """0 takes the likeliest token."""
    top_k: int
    top_p: float


def settings_of(given: object, *, model: nn.Module, max_gen_toks: int) -> Settings:
    """Return the settings that a request's generation arguments mean.

    As in lm-eval's own model: `do_sample: false` is greedy whatever the temperature, and without
    do_sample a temperature above 0 samples. What is not said of top_k and top_p is what
    transformers would take.

    Raises:
        Refused: unsupported_option (an argument that nothing here honours), or bad_request.
    """
    if not isinstance(given, Mapping):
        raise _bad("generation arguments", given, "a mapping")
    _refuse_unknown(given)
    greedy = not _samples(given)
    top_k = _number(given, "top_k", option_of(model, {}, "top_k") or HF_TOP_K)
    top_p = _number(given, "top_p", option_of(model, {}, "top_p") or 1.0)
    temperature = _number(given, "temperature", option_of(model, {}, "temperature") or 1.0)
    if not greedy and temperature <= 0:
        raise _bad("temperature", temperature, "above 0 where do_sample is true")
    return Settings(
        _length(given, max_gen_toks),
        _stops(given.get("until")),
        0.0 if greedy else temperature,
        0 if greedy else int(top_k),
        1.0 if greedy else top_p,
    )


def row_of(
    ids: Sequence[int], plan: Sequence[Intervention], settings: Settings, seed: int
) -> Asked:
    """Return the row of one request.

    Raises:
        Refused: bad_request, for a number out of its range.
    """
    sampling = GREEDY
    if settings.temperature > 0:
        sampling = Sampling(settings.temperature, settings.top_k, settings.top_p, seed)
    return Asked(ids, plan, settings.max_new_tokens, sampling, settings.stop)


def seed_of(seed: int, context: str, nth: int) -> int:
    """Return the seed of the nth request with this context, from 0.

    A request's draws are its own, whatever stands beside it in the batch: those of
    `lm.generate([context], plan, do_sample=True, seed=seed_of(...), ...)`. Repeats of one request
    differ by `nth`.
    """
    text = f"{seed}|{nth}|{context}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _refuse_unknown(given: Mapping[object, object]) -> None:
    for name, value in given.items():
        if name in HONOURED or (name in NEUTRAL and value in (None, NEUTRAL[str(name)])):
            continue
        hint = did_you_mean(str(name), [*HONOURED, *NEUTRAL])
        raise Refused(
            "unsupported_option",
            f"The task asks to generate with {name}={value!r}, which is not honoured here: the "
            f"answers would be those of a run without it.{hint} Leave it out of "
            f"generation_kwargs; {', '.join(sorted(HONOURED))} are honoured.",
        )


def _samples(given: Mapping[object, object]) -> bool:
    asked = given.get("do_sample")
    if asked is None:
        return _number(given, "temperature", 0.0) > 0
    if not isinstance(asked, bool):
        raise _bad("do_sample", asked, "true or false")
    return asked


def _length(given: Mapping[object, object], default: int) -> int:
    said = {name: given[name] for name in LENGTHS if given.get(name) is not None}
    if len(set(map(str, said.values()))) > 1:
        raise _bad("the number of new tokens", said, "said once")
    n = next(iter(said.values()), default)
    if isinstance(n, bool) or not isinstance(n, int | float | str) or not str(n).isdigit():
        raise _bad(next(iter(said), "max_gen_toks"), n, "a whole number above 0")
    if int(n) < 1:
        raise _bad(next(iter(said), "max_gen_toks"), n, "a whole number above 0")
    return int(n)


def _stops(until: object) -> tuple[str, ...]:
    listed = [until] if isinstance(until, str) else [] if until is None else until
    if not isinstance(listed, list | tuple) or not all(isinstance(one, str) for one in listed):
        raise _bad("until", until, "a string or a list of strings")
    # An empty string would end every answer at once; lm-eval leaves it out too.
    return tuple(one for one in listed if one)


def _number(given: Mapping[object, object], name: str, default: int | float) -> float:
    value = given.get(name)
    if value is None:
        return float(default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(name, value, "a number")
    return float(value)


def _bad(name: str, value: object, wanted: str) -> Refused:
    return Refused("bad_request", f"{name} is {value!r}, but it has to be {wanted}. Change it.")
