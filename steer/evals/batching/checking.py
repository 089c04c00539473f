"""What can be refused of a row before it waits."""

from typing import cast

from steer.errors import SteerError
from steer.evals.batching.asked import Asked, Shape
from steer.evals.refusals import Refused
from steer.interventions.gates import Monitor
from steer.lm import LM

MOST_TOP = 64


def checked(lm: LM, asked: Asked, shape: Shape | None) -> None:
    """Refuse a row that cannot be run.

    Raises:
        Refused: bad_request, plan_does_not_fit, or too_long.
    """
    _check_numbers(lm, asked)
    longest = _longest(lm)
    wanted = len(asked.ids) + asked.max_new_tokens + bool(asked.guards)
    if longest is not None and wanted > longest:
        raise Refused(
            "too_long",
            f"{len(asked.ids)} tokens and {asked.max_new_tokens} new ones are {wanted}, but the "
            f"model reads {longest}. Shorten the prompt, or ask for fewer.",
        )
    if shape is not None and len(asked.ids) > shape.width:
        raise Refused(
            "too_long",
            f"The prompt has {len(asked.ids)} tokens, and batches of fixed shape hold "
            f"{shape.width}. Shorten it, or serve with a wider shape.",
        )
    try:
        wiring = lm.registry.wire(list(asked.plan))
    except SteerError as error:
        raise Refused("plan_does_not_fit", str(error)) from None
    for what, length in wiring.row_counts:
        raise Refused(
            "plan_does_not_fit",
            f"{what} has one entry for each of {length} rows, but here each request is one row and "
            "shares its batch with strangers. Save a plan for each row.",
        )
    for guard in asked.guards:
        if not 0 <= guard.line < len(asked.plan) or not isinstance(asked.plan[guard.line], Monitor):
            raise Refused(
                "bad_request",
                f"A guard names the intervention {guard.line} of a plan of {len(asked.plan)}, "
                "which is no Monitor. Only a Monitor's reading decides.",
            )


def _check_numbers(lm: LM, asked: Asked) -> None:
    vocab = cast("int | None", lm.registry.layout.d_vocab)
    if not asked.ids:
        raise Refused("bad_request", "The prompt has no tokens. Give at least a BOS token.")
    outside = [i for i in asked.ids if i < 0 or (vocab is not None and i >= vocab)]
    if outside:
        raise Refused(
            "bad_request",
            f"The prompt has the token id {outside[0]}, which is not among the {vocab} of this "
            "model. Use its own tokenizer.",
        )
    if asked.max_new_tokens < 1:
        raise Refused(
            "bad_request", f"max_new_tokens is {asked.max_new_tokens}. Ask for 1 or more."
        )
    if not 0 <= asked.top <= MOST_TOP:
        raise Refused("bad_request", f"top is {asked.top}; name 0 to {MOST_TOP} tokens.")
    if any(not stop for stop in asked.stop):
        raise Refused("bad_request", "A stop string is empty, so nothing could be said. Drop it.")


def _longest(lm: LM) -> int | None:
    config = getattr(lm.model.config, "text_config", lm.model.config)
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) else None
