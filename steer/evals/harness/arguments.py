"""lm-eval's `model_args`: what they may say, and the model and plan that they mean.

lm-eval guesses the types of an argument string, and `plan=none` and a missing plan come out alike.
Here the string is cut by this module, so that the plain model is only what was asked for as such.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from steer.errors import SteerError, did_you_mean
from steer.evals.harness.files import read_steered
from steer.evals.manifest import plan_digest
from steer.evals.naming import SHORTEST, loaded
from steer.evals.refusals import Refused
from steer.lm import LM, load
from steer.protocols import Intervention

NONE = "none"
"""In place of a plan: the model as it is, asked for in so many words."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a model argument string says; None where it does not."""

    model: str
    plan: str
    """A file of `steer.save` or of lm-eval's `steered` model (.pt), or `none`."""
    digest: str | None = None
    """Of the plan, 12 to 64 digits."""
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    batch_size: int | None = None
    """Rows of a pass at most; lm-eval's `auto` is None."""
    max_tokens: int | None = None
    """Padded tokens of a scoring pass."""
    max_length: int | None = None
    max_gen_toks: int | None = None
    seed: int | None = None
    add_bos_token: bool | None = None


_TEXTS = ("model", "plan", "digest", "revision", "dtype", "device")
_INTEGERS = ("batch_size", "max_tokens", "max_length", "max_gen_toks", "seed")


def of_string(text: str, more: Mapping[str, object]) -> Arguments:
    """Return what `model=NAME,plan=FILE,...` says.

    Args:
        text: pairs with commas between; a value holds no comma.
        more: what lm-eval adds (batch_size, device); what the string says comes first.

    Raises:
        Refused: bad_request.
    """
    said: dict[str, object] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = pair.partition("=")
        if not equals or name in said:
            raise Refused(
                "bad_request",
                f"The model arguments say {pair!r}, which is not name=value, once for each name. "
                "A path with a comma in it cannot be given here.",
            )
        said[name] = value
    return of_mapping(said, more)


def of_mapping(said: Mapping[str, object], more: Mapping[str, object]) -> Arguments:
    """Return what a mapping of model arguments says.

    Raises:
        Refused: bad_request: an unknown name, a missing model or plan, a value of another type.
    """
    ignored = ("max_batch_size",)  # lm-eval hands it to every model; it bounds its own search
    given = {k: v for k, v in more.items() if v is not None and k not in ignored} | dict(said)
    known = [field.name for field in fields(Arguments)]
    for name in given:
        if name not in known:
            raise Refused(
                "bad_request",
                f"There is no model argument {name!r}.{did_you_mean(name, known)} It would be "
                f"ignored. There are {', '.join(known)}.",
            )
    for name, wanted in (("model", "model=NAME or a path"), ("plan", "plan=FILE")):
        # lm-eval's own parser makes None of the word none.
        if name not in given or (name == "model" and not given[name]):
            raise Refused(
                "bad_request",
                f"The model arguments name no {name}. Without one the answers would be nobody "
                f"knows whose. Give {wanted}; plan={NONE} asks for the model as it is.",
            )
    texts = {name: _text(name, given.get(name)) for name in _TEXTS if name in given}
    numbers = {name: _integer(name, given[name]) for name in _INTEGERS if name in given}
    texts["plan"] = texts["plan"] or NONE
    bos = _boolean("add_bos_token", given.get("add_bos_token"))
    return Arguments(**texts, **numbers, add_bos_token=bos)  # type: ignore[arg-type]


def model_of(said: Arguments) -> LM:
    """Load the model; nothing is downloaded from here.

    Raises:
        ModelNotFound: it is not on this machine.
    """
    return load(
        said.model,
        revision=said.revision,
        dtype=said.dtype,
        device=said.device,
        allow_download=False,
    )


def plan_of(said: Arguments, lm: LM) -> tuple[Intervention, ...]:
    """Return the plan; nothing for `none`.

    Raises:
        Refused: bad_plan (a file that holds no plan for one row), wrong_plan (another digest than
            the one given), or bad_request (a digest without a plan).
    """
    if said.plan == NONE:
        if said.digest is not None:
            raise Refused(
                "wrong_plan",
                f"plan={NONE} asks for the model as it is, and the digest {said.digest[:16]} of a "
                "plan stands beside it. Leave out one of them.",
            )
        return ()
    file = Path(said.plan)
    steered = file.suffix in (".pt", ".pth")
    items: Sequence[Intervention] = read_steered(lm, file) if steered else loaded(file)
    found = plan_digest(items)
    if said.digest is None:
        return tuple(items)
    if len(said.digest) < SHORTEST:
        raise Refused(
            "bad_request",
            f"The digest {said.digest!r} is shorter than {SHORTEST} digits, so it could be another "
            "plan's. Give more of it.",
        )
    if not found.startswith(said.digest):
        raise Refused(
            "wrong_plan",
            f"{file} holds the plan {found[:16]}, but {said.digest[:16]} is promised. Results "
            "would stand under another plan's name. Give the right file, or its digest.",
        )
    return tuple(items)


def checked_plan(lm: LM, plan: object) -> tuple[Intervention, ...]:
    """Return a plan that fits any number of rows of a model.

    Raises:
        Refused: bad_plan, or plan_does_not_fit.
    """
    if isinstance(plan, str) and plan == NONE:
        return ()
    if isinstance(plan, str) or not isinstance(plan, Sequence) or not plan:
        raise Refused(
            "bad_plan",
            f"The plan is {plan!r}, but it has to be a list of interventions, alike for every row: "
            f"which rows share a batch is lm-eval's affair. The word {NONE!r} asks for the model "
            "as it is.",
        )
    items = tuple(plan)
    try:
        counts = lm.registry.wire(list(items)).row_counts
        plan_digest(items)
    except SteerError as error:
        raise Refused("plan_does_not_fit", str(error)) from None
    for what, length in counts:
        raise Refused(
            "plan_does_not_fit",
            f"{what} has one entry for each of {length} rows, but which requests share a batch is "
            "lm-eval's affair. Save a plan for each row.",
        )
    return items


def _text(name: str, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    raise Refused(
        "bad_request",
        f"The model argument {name} came as {value!r}, a {type(value).__name__}: lm-eval takes "
        "what looks like a number for one. Put quotes around it.",
    )


def _integer(name: str, value: object) -> int | None:
    if value is None or (name == "batch_size" and str(value).startswith("auto")):
        return None
    text = str(value)
    if isinstance(value, bool) or not text.isdigit() or (int(text) < 1 and name != "seed"):
        raise Refused("bad_request", f"{name} is {value!r}, but it has to be a whole number.")
    return int(text)


def _boolean(name: str, value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    if str(value).lower() not in ("true", "false"):
        raise Refused("bad_request", f"{name} is {value!r}, but it has to be true or false.")
    return str(value).lower() == "true"
