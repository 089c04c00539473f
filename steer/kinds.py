"""The allow-list of kinds, and how a value is rebuilt from its spec through it.

A file never names an import path: it names a kind, and only kinds that an installed package has
declared as an entry point are rebuilt. How a spec is written is in `steer.spec`.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from steer.errors import SpecError, did_you_mean
from steer.sites import parse_site
from steer.spec import GROUP, PLAN, SITE, VERSION, version_of


def kinds() -> "Kinds":
    """Return the kinds that may be rebuilt, each class imported only when it is looked up.

    They come from the entry points that installed packages declare, never from a file.
    """
    return _installed()


def rebuild(spec: Mapping[str, object], *, kinds: Mapping[str, type] | None = None) -> object:
    """Return the value that a spec describes; the nested ones are rebuilt first.

    A class with a classmethod `from_spec` gets the spec, other dataclasses their fields. Lists
    come back as tuples, as frozen values hold no lists; a plan comes back as a list.

    Raises:
        SpecError: an unknown kind, one written by a newer version, or fields that do not fit.
    """
    return _rebuilt(spec, _installed() if kinds is None else kinds, "the spec")


def check_known(spec: object, known: Mapping[str, type]) -> None:
    """Refuse a spec that holds a kind which could not be rebuilt.

    Raises:
        SpecError: a kind that is not in the allow-list.
    """
    if isinstance(spec, Mapping):
        if isinstance(spec.get("kind"), str) and "version" in spec:
            _known(str(spec["kind"]), known)
        for item in spec.values():
            check_known(item, known)
    elif isinstance(spec, list | tuple):
        for item in spec:
            check_known(item, known)


@cache
def _installed() -> "Kinds":
    """Read the declarations once: they cannot change while the process runs."""
    return Kinds(tuple(entry_points(group=GROUP)))


class Kinds(Mapping[str, type]):
    """Entry points by kind, loaded one by one: a saved probe must not import every plug-in."""

    def __init__(self, found: Sequence[EntryPoint]) -> None:
        """Sort the declarations by kind."""
        self._values = {
            kind: sorted({point.value for point in found if point.name == kind})
            for kind in sorted({point.name for point in found})
        }

    def __getitem__(self, kind: str) -> type:
        """Import and return the class of one kind.

        Raises:
            SpecError: it does not import, or two packages declare it differently.
        """
        values = self._values[kind]
        if len(values) > 1:
            raise SpecError(
                f"The kind {kind} is declared by {' and by '.join(values)}. One of the installed "
                "packages would replace the other's class. Uninstall one of them."
            )
        try:
            return EntryPoint(kind, values[0], GROUP).load()
        except (ImportError, AttributeError) as error:
            raise SpecError(
                f"The kind {kind} is declared as {values[0]}, which does not import: {error}. "
                "Repair or reinstall the package that declares it."
            ) from error

    def __contains__(self, kind: object) -> bool:
        """Say whether a kind is declared; nothing is imported."""
        return kind in self._values

    def __iter__(self) -> Iterator[str]:
        """Name the kinds; nothing is imported."""
        return iter(self._values)

    def __len__(self) -> int:
        """Return how many kinds are declared."""
        return len(self._values)


def _known(kind: str, known: Mapping[str, type]) -> None:
    """Refuse a kind that is not in the allow-list."""
    if kind not in known and kind not in (SITE, PLAN):
        names = sorted({SITE, PLAN, *known})
        raise SpecError(
            f"{kind!r} is not a kind that is installed here.{did_you_mean(kind, names)} Only "
            f"classes declared as entry points of the group {GROUP} are rebuilt, never an import "
            f"path. Install the package that declares it; known are {', '.join(names)}."
        )


def _rebuilt(node: object, known: Mapping[str, type], where: str) -> object:
    """Return a node with every nested spec rebuilt, children first."""
    if isinstance(node, list | tuple):
        return tuple(_rebuilt(item, known, f"{where}[{i}]") for i, item in enumerate(node))
    if not isinstance(node, Mapping):
        return node
    kind, version = node.get("kind"), node.get("version")
    if isinstance(kind, str) and "version" in node:
        _known(kind, known)
        newest = VERSION if kind in (SITE, PLAN) else version_of(known[kind])
        if not isinstance(version, int) or not 1 <= version <= newest:
            raise SpecError(
                f"{where} is a {kind} of version {version!r}, but this installation reads "
                f"versions 1 to {newest}. A newer form may mean something else. Update "
                "manifold-steer or the package that declares the kind."
            )
    built = {key: _rebuilt(item, known, f"{where}.{key}") for key, item in node.items()}
    if not (isinstance(kind, str) and "version" in node):
        return built
    try:
        return _made(kind, built, known)
    except SpecError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise SpecError(
            f"{where} is a {kind} that cannot be rebuilt: {error}. Its fields are "
            f"{', '.join(sorted(set(built) - {'kind', 'version'}))}. Save it again with this "
            "version of the package."
        ) from error


def _made(kind: str, built: dict[str, object], known: Mapping[str, type]) -> object:
    """Return the value of one kind from its rebuilt fields."""
    if kind == SITE:
        return parse_site(str(built["name"]))
    if kind == PLAN:
        interventions = built["interventions"]
        assert isinstance(interventions, tuple)
        return list(interventions)
    cls = known[kind]
    from_spec = getattr(cls, "from_spec", None)
    if from_spec is not None:
        return from_spec(built)
    return cls(**{name: item for name, item in built.items() if name not in ("kind", "version")})
