"""The run manifest: which plan, in which model, read by which tokenizer, under which libraries.

It stands beside every result. Two runs with equal manifests did the same thing, up to the
non-determinism of the device; where they differ, `require_same` says in what.
"""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType
from typing import cast

from steer.errors import SpecError
from steer.evals.refusals import Reason, Refused
from steer.interventions.plans import Plan, Rows
from steer.lm import LM
from steer.models import weight_hash
from steer.spec import canonical, digest, spec_of

FORMAT, VERSION = "steer.Manifest", 1
LIBRARIES = (
    "manifold-steer",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "safetensors",
    "inspect-ai",
    "lm-eval",
)
"""Whose versions are kept, where installed."""

_REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        "plan": "wrong_plan",
        "model": "wrong_model",
        "tokenizer": "wrong_tokenizer",
        "libraries": "wrong_libraries",
        "seeds": "wrong_seeds",
    }
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What identifies a run; all values are JSON."""

    plan: str | None
    """sha256 of the plan's canonical spec; None for a run without one."""
    model: Mapping[str, str | None]
    """name, source, revision, quantisation, dtype, device, and the sha256 of the weights."""
    tokenizer: Mapping[str, str | None]
    """Its class, the sha256 of its vocabulary and rules, and of its chat template."""
    libraries: Mapping[str, str]
    seeds: tuple[int, ...]

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values, with the digest of all others."""
        return {**self._plain(), "digest": self.digest}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "Manifest":
        """Rebuild what `to_json` returned, checked against its digest.

        Raises:
            SpecError: parts are missing or of another type, or it was changed.
        """
        plan, seeds = values.get("plan"), values.get("seeds")
        tables = [values.get(name) for name in ("model", "tokenizer", "libraries")]
        if (
            values.get("kind") != FORMAT
            or values.get("version") != VERSION
            or not (plan is None or isinstance(plan, str))
            or not isinstance(seeds, list | tuple)
            or not all(isinstance(seed, int) for seed in seeds)
            or not all(isinstance(table, Mapping) for table in tables)
        ):
            raise SpecError(
                f"This is no manifest of version {VERSION}: it lacks parts or has others in their "
                "place. It was edited, or written by another version. Make the run again."
            )
        model, tokenizer, libraries = (cast("Mapping[str, str]", table) for table in tables)
        made = cls(plan, dict(model), dict(tokenizer), dict(libraries), tuple(seeds))
        if made.digest != values.get("digest"):
            raise SpecError(
                f"The manifest's values have the digest {made.digest[:16]}..., but it says "
                f"{str(values.get('digest'))[:16]}...: it was changed after it was written. Take "
                "the original, or make the run again."
            )
        return made

    @property
    def digest(self) -> str:
        """The sha256 of the canonical JSON, in hex."""
        return digest(self._plain())

    def __repr__(self) -> str:
        """Say the plan, the model and the digest in one line."""
        plan = "no plan" if self.plan is None else f"plan {self.plan[:12]}"
        weights = str(self.model.get("weights"))[:12]
        return (
            f"Manifest({plan} in {self.model.get('name')} {weights} ({self.model.get('dtype')}), "
            f"digest {self.digest[:12]})"
        )

    def _plain(self) -> dict[str, object]:
        return {
            "kind": FORMAT,
            "version": VERSION,
            "plan": self.plan,
            "model": dict(self.model),
            "tokenizer": dict(self.tokenizer),
            "libraries": dict(self.libraries),
            "seeds": list(self.seeds),
        }


def manifest_of(lm: LM, plan: Plan | None = None, *, seeds: Sequence[int] = ()) -> Manifest:
    """Return the manifest of a run of a plan in a model; reads every weight once.

    Raises:
        SpecError: the plan holds something without a spec, such as steer.Custom: code has no
            identity that a result could carry.
    """
    source = lm.provenance
    template = getattr(lm.tokenizer, "chat_template", None)
    return Manifest(
        None if plan is None else plan_digest(plan),
        {
            "name": source.name,
            "source": source.source,
            "revision": source.revision,
            "quantisation": source.quantisation,
            "dtype": source.dtype,
            "device": str(lm.device),
            "weights": weight_hash(lm.model),
        },
        {
            "class": type(lm.tokenizer).__name__,
            "rules": _sha256(_rules(lm.tokenizer)),
            "chat_template": None if template is None else _sha256(canonical({"t": template})),
        },
        {"python": platform.python_version(), **_versions()},
        tuple(int(seed) for seed in seeds),
    )


def plan_digest(plan: Plan) -> str:
    """Return the sha256 over a plan's tensors, sites, scopes, order, strengths and gates.

    Raises:
        SpecError: it holds something that cannot be saved.
    """
    return plan.digest if isinstance(plan, Rows) else digest(spec_of(list(plan)))


def require_same(promised: Manifest, found: Manifest, *, parts: Sequence[str] = ()) -> None:
    """Refuse a run that is not the promised one.

    Args:
        promised: what stands beside the result, or in the artefact.
        found: what is about to run.
        parts: which of plan, model, tokenizer, libraries, seeds are compared; all by default.

    Raises:
        Refused: with the code of the first part that differs, and both values.
    """
    for part in parts or tuple(_REASONS):
        if part not in _REASONS:
            raise SpecError(f"A manifest has no part {part!r}: it has {', '.join(_REASONS)}.")
        mine, its = promised.to_json()[part], found.to_json()[part]
        if mine == its:
            continue
        told = f"{mine!r} was promised and {its!r} was found"
        if isinstance(mine, dict) and isinstance(its, dict):
            keys = [k for k in sorted({*mine, *its}) if mine.get(k) != its.get(k)]
            told = "; ".join(f"{k}: {mine.get(k)!r} promised, {its.get(k)!r} found" for k in keys)
        raise Refused(
            _REASONS[part],
            f"This run is not the promised one: its {part} differs ({told}). An answer from it "
            "would stand under a name that is not its own. Load what was promised, or make a new "
            "manifest and say so.",
        )


def _rules(tokenizer: object) -> str:
    """Return the text that says how a tokenizer cuts text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return str(backend.to_str())
    vocab = cast("Mapping[str, int]", getattr(tokenizer, "get_vocab")())  # noqa: B009
    special = getattr(tokenizer, "special_tokens_map", {})
    return canonical({"vocab": dict(vocab), "special": {k: str(v) for k, v in special.items()}})


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
