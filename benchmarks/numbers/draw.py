"""Pictures of `helix`: which periods are read, and what each shape carries."""

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.result import Result

_ORDER = (
    "centroid", "components", "helix", "polynomial", "circle", "line", "permuted", "random",
)  # fmt: skip


def draw_helix(result: Result, path: Path) -> list[Path]:
    """Draw the periods and the effects beside the result; return the file written."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    periods, blocks, effects = figure.subplots(1, 3, width_ratios=[1.2, 0.8, 1])
    table = result.tables["periods"]
    places = range(len(table["periods"]))
    periods.bar(places, table["r2"], color="#30638e", label="held-out R2")
    periods.plot(places, table["null_r2"], "_", color="#d1495b", ms=14, label="95 % of permuted")
    periods.set_xticks(list(places), [str(t) for t in table["periods"]])
    periods.set(xlabel="period", ylabel="R2", title="periods read in the state")
    periods.set_ylim(min(-0.2, min(table["null_r2"])) - 0.05, 1.25)
    periods.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
    moved = result.tables["blocks"]
    blocks.plot(range(len(moved)), moved, ".-", color="#30638e")
    blocks.axvline(float(result.numbers["best_block"].value or 0), color="#8d99ae", ls=":")
    blocks.set(xlabel="block", ylabel="logit difference moved", title="average state, train")
    known = {**result.numbers, **result.controls}
    names = [name for name in _ORDER if f"{name}_effect" in known]
    for i, name in enumerate(names):
        number = known[f"{name}_effect"]
        control = name in ("permuted", "random")
        effects.barh(i, number.value, color="#8d99ae" if control else "#00798c")
        effects.plot([number.lo, number.hi], [i, i], color="#2b2d42", lw=1.5)
    effects.set_yticks(range(len(names)), names)
    effects.invert_yaxis()
    effects.set(xlabel="logit difference moved", title="the state replaced by")
    written = path.with_name(f"{path.stem}_helix.png")
    figure.savefig(written, dpi=130)
    return [written]
