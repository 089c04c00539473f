"""The plans that a server offers: named, checked against the model before it listens."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from steer.errors import SteerError, did_you_mean
from steer.evals.manifest import plan_digest
from steer.evals.naming import BARE, BASE, Named, loaded
from steer.evals.refusals import Refused
from steer.lm import LM

SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server allows."""

    token: str | None = None
    """What a client has to bear; None asks for nothing, and is for loopback only."""
    timeout_s: float = 120.0
    """Of reading a request, and of answering it."""
    max_body: int = 1 << 20
    """Bytes of a request."""
    max_tokens: int = 1024
    """New tokens of an answer at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Plans:
    """Plans by name. No request can name a file."""

    model: str
    by_name: Mapping[str, Named]

    def named(self, model: str, plan: str | None, digest: str | None) -> Named:
        """Return the plan that a request asks for: `MODEL@PLAN`, or `MODEL` and a plan.

        Raises:
            Refused: unknown_model, unknown_plan, wrong_plan.
        """
        given, at, inside = model.partition("@")
        if given != self.model:
            raise Refused(
                "unknown_model",
                f"This server has the model {self.model}, not {given!r}. Ask /v1/models.",
            )
        if at and plan is not None and plan != inside:
            raise Refused(
                "wrong_plan",
                f"The model's name asks for the plan {inside!r} and the body for {plan!r}. Which "
                "is meant cannot be told. Say it once.",
            )
        wanted = inside if at else plan
        if wanted is None or wanted not in self.by_name:
            near = did_you_mean(str(wanted), self.by_name)
            raise Refused(
                "unknown_plan",
                f"The plan {wanted!r} is not registered here, and no answer is given without one."
                f"{near} Ask for {self.model}@PLAN; /v1/models lists them.",
            )
        found = self.by_name[wanted]
        if digest is not None and digest != found.digest:
            raise Refused(
                "wrong_plan",
                f"The plan {wanted!r} is {found.digest[:16]} here, but {digest[:16]!r} is "
                "promised. An answer would stand under another plan's name.",
            )
        return found


def read_plans(lm: LM, folder: Path, *, model: str, base: bool) -> Plans:
    """Return the plans of a folder, by the names of their files.

    Args:
        lm: the model, which every plan has to fit.
        folder: of files that steer.save wrote.
        model: the name under which the model is served.
        base: whether `base`, the model as it is, may be asked for.

    Raises:
        Refused: bad_plan or plan_does_not_fit, with the file; unknown_plan, where there is none.
    """
    found: dict[str, Named] = {BASE: BARE} if base else {}
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        items = loaded(file)
        try:
            rows = lm.registry.wire(list(items)).row_counts
        except SteerError as error:
            raise Refused("plan_does_not_fit", f"{file}: {error}") from None
        if rows or file.stem == BASE:
            raise Refused(
                "bad_plan",
                f"{file} cannot be served: it has values for given rows, or the name {BASE!r}, "
                "which means the model as it is. A request is one row under one name.",
            )
        found[file.stem] = Named(plan_digest(items), items)
    if not found:
        raise Refused(
            "unknown_plan",
            f"{folder} holds no {SUFFIX} file, so nothing could be asked for. Save a plan there "
            "with steer.save, or allow the model as it is.",
        )
    return Plans(model, found)
