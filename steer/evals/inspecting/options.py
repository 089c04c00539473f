"""Inspect's settings as one row of a batch: what is honoured, and what is refused by name."""

import hashlib
from collections.abc import Mapping, Sequence

from inspect_ai.log._samples import sample_active  # the only place that says whose call this is
from inspect_ai.model import GenerateConfig

from steer.evals.batching import Asked, Guard, Sampling
from steer.evals.naming import Named, plan_of
from steer.evals.refusals import Refused

NOT_HONOURED = (
    "best_of",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "response_schema",
    "reasoning_effort",
    "reasoning_tokens",
    "effort",
    "verbosity",
    "modalities",
)
"""Settings that would change the answer, which nothing here does."""
BODY = frozenset({"plan", "digest", "guards"})
"""What a request may say in extra_body."""
DEFAULT_TOKENS = 2048
MOST_TOP = 20


def refuse_options(config: GenerateConfig) -> None:
    """Refuse what would be ignored.

    Raises:
        Refused: unsupported_option, with the setting's name and value.
    """
    asked = {name: getattr(config, name, None) for name in NOT_HONOURED}
    if (config.num_choices or 1) > 1:
        asked["num_choices"] = config.num_choices
    if (config.prompt_logprobs or 1) > 1:
        asked["prompt_logprobs"] = config.prompt_logprobs
    for name, value in asked.items():
        if value is not None:
            raise Refused(
                "unsupported_option",
                f"{name} is {value!r}, which this provider does not honour: the answers would be "
                "those of a run without it. Leave it out (prompt_logprobs: 1).",
            )


def row_of(
    ids: Sequence[int],
    config: GenerateConfig,
    named: Named,
    guards: Sequence[Guard],
    room: int | None,
) -> Asked:
    """Return the row of one call.

    Without a temperature the likeliest token is taken, as `lm.generate` does; with top_p or top_k
    alone the temperature is 1. `room` is how many tokens the model reads.
    """
    left = DEFAULT_TOKENS if room is None else max(1, min(DEFAULT_TOKENS, room - len(ids)))
    return Asked(
        ids,
        named.plan,
        left if config.max_tokens is None else config.max_tokens,
        _sampling(config),
        tuple(config.stop_seqs or ()),
        tuple(guards),
        top=min(config.top_logprobs or 0, MOST_TOP) if config.logprobs else 0,
        prompt_log_probs=bool(config.prompt_logprobs),
    )


def plan_in(
    body: Mapping[str, object] | None, own: Named
) -> tuple[Named, tuple[Guard, ...] | None]:
    """Return the plan of a request, which may bring one of its own, and its guards.

    The digest has to stand beside the file: the body is part of Inspect's cache key, and the file
    can change where its name does not.

    Raises:
        Refused: bad_request, or what `plan_of` refuses.
    """
    if not body:
        return own, None
    unknown = sorted(set(body) - BODY)
    if unknown:
        raise Refused(
            "bad_request",
            f"extra_body holds {', '.join(unknown)}, which nothing here reads. It may hold "
            f"{', '.join(sorted(BODY))}.",
        )
    guards = guards_of(body["guards"]) if "guards" in body else None
    if "plan" not in body and "digest" not in body:
        return own, guards
    digest = body.get("digest")
    if not isinstance(digest, str) or len(digest) != 64:
        raise Refused(
            "bad_request",
            f"extra_body names the plan {body.get('plan')!r} with the digest {digest!r}. All 64 "
            "digits of it have to stand there, as they are all that a cache knows of the plan.",
        )
    return plan_of(body.get("plan"), digest), guards


def guards_of(given: object) -> tuple[Guard, ...]:
    """Return guards from JSON: a list of {"line": N, "above": X}.

    Raises:
        Refused: bad_request.
    """
    made = []
    for one in given if isinstance(given, list | tuple) else [given]:
        if not isinstance(one, Mapping) or set(one) != {"line", "above"}:
            raise Refused(
                "bad_request",
                f"A guard is {one!r}, but it has to be an object with `line` (which Monitor of the "
                "plan, from 0) and `above` (the threshold).",
            )
        line, above = one["line"], one["above"]
        if type(line) is not int or not isinstance(above, int | float) or above is True:
            raise Refused("bad_request", f"A guard is {one!r}: line is an integer, above a number.")
        made.append(Guard(line, float(above)))
    return tuple(made)


def _sampling(config: GenerateConfig) -> Sampling:
    warped = config.top_p is not None or config.top_k is not None
    temperature = config.temperature if config.temperature is not None else 1.0 if warped else 0.0
    seed = None if config.seed is None else _seed_of_sample(config.seed)
    return Sampling(
        temperature,
        config.top_k or 0,
        1.0 if config.top_p is None else config.top_p,
        seed,
    )


def _seed_of_sample(seed: int) -> int:
    """Return a seed of this sample's own: one seed for all would give equal prompts equal draws."""
    active = sample_active()
    if active is None:
        return seed
    text = f"{seed}|{active.sample.id}|{active.epoch}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
