"""Plans by digest: what a name promises, and the file that has to keep it.

Shared by all ways in. Inspect's generation cache knows the model's name and not its arguments, so
there the digest stands in the name (`MODEL@DIGEST`): without it, a steered run is answered from the
cache of another.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from steer.artifacts import load_artifact
from steer.errors import PlanError
from steer.evals.manifest import plan_digest
from steer.evals.refusals import Refused
from steer.interventions.plans import Rows, as_items
from steer.protocols import Intervention

BASE = "base"
"""In place of a digest: the model as it is, asked for in so many words."""
SHORTEST = 12
_DIGEST = re.compile(rf"[0-9a-f]{{{SHORTEST},64}}")


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A plan and the digest of what it really is; `base` and no intervention for the plain model.

    Attributes:
        digest: all 64 digits, or `base`.
        plan: the interventions.
    """

    digest: str
    plan: tuple[Intervention, ...]


BARE = Named(BASE, ())


def parsed(name: str) -> tuple[str, str]:
    """Return the model and the digest (or `base`) of a model string.

    Raises:
        Refused: bad_request, where there is no digest in it.
    """
    model, at, digest = name.rpartition("@")
    if not at or not model or not (digest == BASE or _DIGEST.fullmatch(digest)):
        raise Refused(
            "bad_request",
            f"The model is called steered/{name}, which names no plan. The name is all that a "
            "cache knows of a plan, so it has to hold the digest: steered/MODEL@DIGEST with at "
            f"least {SHORTEST} hexadecimal digits, or steered/MODEL@{BASE} for the model as it is.",
        )
    return model, digest


def plan_of(file: object, digest: str) -> Named:
    """Return the plan of a file, if it is the one promised.

    Raises:
        Refused: bad_request (no file for a digest, or a live object), bad_plan (not a file of
            `steer.save`, or not a plan for one row), wrong_plan (another digest).
    """
    if digest == BASE:
        if file is not None:
            raise Refused(
                "wrong_plan",
                f"The name says @{BASE}, the model as it is, and a plan is given: {file!r}. Put "
                "the plan's digest into the name, or leave the plan out.",
            )
        return BARE
    if not isinstance(file, str | Path):
        raise Refused(
            "bad_request",
            f"The plan {digest[:SHORTEST]} is given as {type(file).__name__}, but it has to be the "
            "path of a file that steer.save wrote: live objects are told apart by nothing that a "
            "log or a cache could keep.",
        )
    items = loaded(Path(file))
    found = plan_digest(items)
    if not found.startswith(digest):
        raise Refused(
            "wrong_plan",
            f"{file} holds the plan {found[:16]}, but {digest[:16]} is promised. An answer from it "
            "would stand under another plan's name. Give the right file, or its digest.",
        )
    return Named(found, items)


def loaded(file: Path) -> tuple[Intervention, ...]:
    """Return the interventions of a saved plan.

    Raises:
        Refused: bad_plan.
    """
    try:
        value = load_artifact(file)
    except (ValueError, OSError) as error:
        raise Refused("bad_plan", str(error)) from None
    if isinstance(value, Rows):
        raise Refused(
            "bad_plan",
            f"{file} holds Rows, one plan for each row of a batch of its own, but here each sample "
            "is one row and shares its batch with others. Save one of its plans.",
        )
    if isinstance(value, Intervention):
        value = [value]
    try:
        items = as_items(value, str(file))
    except (PlanError, TypeError) as error:
        raise Refused("bad_plan", str(error)) from None
    if not items:
        raise Refused(
            "bad_plan",
            f"{file} holds an empty plan, under which every answer is unsteered. Ask for @{BASE}.",
        )
    return items
