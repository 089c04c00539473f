"""What an intervention must satisfy to be attached to a model: each check refuses one mistake.

Pure: takes an intervention, a tap, a layout. `steer.wiring` asks; nothing is wired here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from steer.errors import PlanError, SpecError, SteerError, WidthMismatch
from steer.interventions.believed import Control, Forecast, late_evidence
from steer.interventions.gates import Monitor, Read, When
from steer.interventions.recipe import Recipe, walk, widths_of
from steer.models.layout import Layout, Tap
from steer.protocols import Intervention
from steer.scopes import GENERATED
from steer.sites import AnySite, Site


class blame:
    """Say which intervention of the plan an error is about."""

    def __init__(self, item: Intervention, place: int, arm: int | None) -> None:
        """Hold what is being checked."""
        self.item, self.place = item, place
        self.plan = "the plan" if arm is None else f"arm {arm}"

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise the error again with the intervention named."""
        if isinstance(error, SteerError):
            what = f"Intervention {self.place} of {self.plan}, {self.item!r}: {error}"
            raise type(error)(what) from None


def refuse_pattern(site: AnySite) -> None:
    """Refuse to write an attention pattern.

    Raises:
        PlanError: says what to edit instead.
    """
    if isinstance(site, Site) and site.component == "pattern":
        raise PlanError(
            f"{site} can be read by lm.capture but not written: the fused kernel makes it inside "
            "and takes no weights. Edit q or k before it, or z after it."
        )


def refuse_read_only(item: Intervention, tap: Tap) -> None:
    """Refuse an edit of a tensor that nothing downstream uses: it would do nothing.

    Raises:
        PlanError: with the layout's reason.
    """
    if tap.read_only is not None and not isinstance(item, Monitor | Forecast):
        raise PlanError(
            f"{item.site} can be read but not written: {tap.read_only}. An edit there would "
            "silently do nothing. Edit an earlier site."
        )


def reads_of(item: Intervention) -> list[tuple[Read, str]]:
    """Return the (Read, latch) pairs of an intervention and of all that it wraps."""
    parts = [part for part in walk(item) if isinstance(part, Recipe)]
    return [pair for part in parts for pair in part.reads()]


def outcomes_of(item: Intervention) -> list[Read]:
    """Return what an intervention and all that it wraps record of the output."""
    parts = [part for part in walk(item) if isinstance(part, Control | Forecast)]
    return [part.outcome for part in parts if part.outcome is not None]


def sites_of(item: Intervention) -> list[AnySite]:
    """Return where an intervention acts, then where it reads."""
    reads = [*(read for read, _ in reads_of(item)), *outcomes_of(item)]
    return [item.site, *(read.site for read in reads)]


def check_widths(item: Intervention, layout: Layout) -> None:
    """Refuse tensors of another width than their site, and probes of another than theirs.

    Raises:
        WidthMismatch: names both, and where the tensor was fitted if it says so.
    """
    found = [(item.site, what, size) for what, size in widths_of(item, item.site)]
    for read, _ in reads_of(item):
        size = getattr(read.probe, "d_model", None)
        found += [] if size is None else [(read.site, "the probe", size)]
    for site, what, size in found:
        width = layout.width(site)
        if width is not None and size != width:
            origins = [origin for _, origin in _origins(item)]
            said = f" (its origin says {dict(origins[0])})" if origins else ""
            raise WidthMismatch(
                f"{what} has {size} entries but {site} is {width} wide in {layout.name}. It was "
                f"probably fitted on another model or site{said}. Refit it on activations captured "
                "from this model at this site."
            )


def _origins(item: Intervention) -> Iterator[tuple[object, Mapping[str, object]]]:
    # Of what was fitted on activations: the manifold of an intervention, the probe of a read.
    for part in walk(item):
        reads = part.reads() if isinstance(part, Recipe) else ()
        for fitted in (getattr(part, "manifold", None), *(read.probe for read, _ in reads)):
            origin = getattr(fitted, "origin", None)
            if isinstance(origin, Mapping):
                yield fitted, origin


def check_origins(items: Sequence[Intervention], weights: Callable[[], str], name: str) -> None:
    """Refuse what says that it was fitted on other weights; what says nothing is not checked.

    Raises:
        SpecError: names both.
    """
    claims = [
        (item, fitted, origin)
        for item in items
        for fitted, origin in _origins(item)
        if origin.get("weights") is not None
    ]
    mine = weights() if claims else ""
    for item, fitted, origin in claims:
        if origin["weights"] != mine:
            raise SpecError(
                f"{item!r} holds {fitted!r}, which was fitted on {origin.get('model', 'a model')} "
                f"with weights {origin['weights']}, but {name} has weights {mine}. Directions and "
                "shapes of one model mean nothing in another. Refit it on activations of this "
                "model, or, if you mean it, drop the claim with "
                "dataclasses.replace(fitted, origin=None)."
            )


def check_order(item: Intervention) -> None:
    """Refuse a gate that reads later in a pass than it must act.

    Raises:
        PlanError: names both sites.
    """
    for part in walk(item):
        late = late_evidence(part) if isinstance(part, Control | Forecast) else None
        if isinstance(part, Control | Forecast) and late is not None:
            raise PlanError(
                f"The evidence is read at {late.site}, which a pass computes after "
                f"{part.site}, where the strength is needed. Read at the same site or an earlier "
                "one, or act on GENERATED tokens only."
            )
        if not isinstance(part, When):
            continue
        read, acts = part.read.site, part.inner.site
        if not isinstance(read, Site) or not isinstance(acts, Site) or read.order <= acts.order:
            continue
        if part.latch == "prompt" and part.inner.scope == GENERATED:
            continue  # decided by the prompt's own pass, acts in later ones
        raise PlanError(
            f"The gate reads {read}, which a pass computes after {acts}, where it must act. Its "
            "value would come too late. Read at the same site or an earlier one, or latch on the "
            "prompt and act on GENERATED tokens only."
        )
