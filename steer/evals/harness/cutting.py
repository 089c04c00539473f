"""Whether a plan means the same in the end of a text as in the whole of it.

A text that is longer than the model reads is cut on the left, as lm-eval's own model does, and
positions count from the cut. FIRST stays the attention sink and the named scopes stay what they
are; position 3, or the second "Paris", would be another token.
"""

from collections.abc import Mapping, Sequence

from steer.evals.refusals import Refused
from steer.protocols import Intervention
from steer.scopes import Combined, Inverted, Named, Scope, Span, parse_scope
from steer.spec import spec_of


def refuse_cut(plan: Sequence[Intervention], n_tokens: int, max_length: int) -> None:
    """Refuse to cut a text under a plan that counts its tokens from the front.

    Raises:
        Refused: too_long, with the scope.
    """
    for scope in scopes_in(plan):
        if not _survives(scope):
            raise Refused(
                "too_long",
                f"A request has {n_tokens} tokens and the model reads {max_length}, so its "
                f"beginning has to be cut off, and the plan's scope {scope!r} would point at "
                "other tokens than in the whole text. Use scopes that do not count from the front "
                "(LAST, OUTPUT, at(-3)), fewer examples in the prompt, or a shorter task.",
            )


def scopes_in(plan: Sequence[Intervention]) -> list[Scope]:
    """Return every scope that a plan names, those of its readings too."""
    return [parse_scope(text) for text in dict.fromkeys(_printed(spec_of(list(plan))))]


def _printed(node: object) -> list[str]:
    if isinstance(node, Mapping):
        if node.get("kind") == "steer.Scope":
            return [str(node["scope"])]
        node = list(node.values())
    if isinstance(node, list | tuple):
        return [text for item in node for text in _printed(item)]
    return []


def _survives(scope: Scope) -> bool:
    if isinstance(scope, Combined):
        return _survives(scope.left) and _survives(scope.right)
    if isinstance(scope, Inverted):
        return _survives(scope.inner)
    if isinstance(scope, Span):
        return scope.start < 0 and (scope.stop is None or scope.stop < 0)
    return isinstance(scope, Named)
