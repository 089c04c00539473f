"""Several concepts at once: the softmax of their log-weights, each with evidence of its own.

log w_c = sum_i a_ci m_i + b_c + gamma_c g(N_c), the several-concept form of the law of Bigelow et
al. 2025 (arXiv:2511.00617); with two concepts it is one Belief in evidence for and against.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from steer import spec as specs
from steer.errors import BeliefError
from steer.odds.belief import Form, array, grown


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Concepts:
    """Predicts the probabilities of several concepts from evidence for each and from steering.

    Only differences of log-weights matter: adding the same to every concept's a or b changes
    nothing, so parameters are compared after centring (`centred`).

    Args:
        names: of the concepts, at least two.
        a: [concept, vector], nats per unit of strength.
        b: [concept], log-weights without evidence and steering.
        gamma: [concept], nats of the first unit of evidence; not negative.
        alpha: [concept], how fast further evidence is discounted.

    Raises:
        BeliefError: shapes that do not fit the names, values that are not finite or out of range.

    >>> two = Concepts(("kind", "unkind"), [[1.0], [-1.0]], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5])
    >>> two.log_odds("kind", evidence=[4.0, 0.0], strength=[0.5])
    tensor(2., dtype=torch.float64)
    """

    kind: ClassVar[str] = "steer.Concepts"
    names: Sequence[str]
    a: Tensor | Sequence[Sequence[float]]
    b: Tensor | Sequence[float]
    gamma: Tensor | Sequence[float]
    alpha: Tensor | Sequence[float]
    form: Form = "power"
    _values: tuple[Tensor, Tensor, Tensor, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Check the parameters."""
        object.__setattr__(self, "names", tuple(self.names))
        values = tuple(array(getattr(self, name)) for name in ("a", "b", "gamma", "alpha"))
        a, b, gamma, alpha = values
        n = len(self.names)
        if n < 2 or len(set(self.names)) < n:
            raise BeliefError(
                f"Concepts was given the names {self.names}. A softmax needs at least two, all "
                "different. For one concept against everything else use a Belief."
            )
        if a.ndim != 2 or len(a) != n or any(x.shape != (n,) for x in (b, gamma, alpha)):
            raise BeliefError(
                f"{n} concepts need a of shape [{n}, vector] and b, gamma, alpha of shape [{n}], "
                f"but they are {[tuple(x.shape) for x in values]}."
            )
        if not all(bool(torch.isfinite(x).all()) for x in values) or bool((gamma < 0).any()):
            raise BeliefError(
                f"The parameters must be finite and gamma not negative, but gamma is "
                f"{gamma.tolist()}. Evidence for a concept cannot lower it."
            )
        if self.form == "power" and bool((alpha >= 1).any()):
            raise BeliefError(
                f'alpha is {alpha.tolist()}; in the form "power" it is below 1. Use form="boxcox".'
            )
        for name, value in zip(("a", "b", "gamma", "alpha"), values, strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_values", values)

    def log_weights(self, evidence: Any, strength: Any = 0.0) -> Tensor:
        """Return [..., concept]: log-weights, up to a constant shared by all concepts.

        Args:
            evidence: [..., concept], for each concept.
            strength: [..., vector], or 0 for no steering.

        Raises:
            BeliefError: a last axis of another length, negative evidence.
        """
        a, b, gamma, alpha = self._values
        n, m = array(evidence), array(strength)
        if n.shape[-1:] != b.shape:
            raise BeliefError(
                f"Evidence of shape {tuple(n.shape)} was given for {len(b)} concepts. Its last "
                f"axis holds one amount for each of {', '.join(self.names)}."
            )
        if m.ndim and m.shape[-1] != a.shape[1]:
            raise BeliefError(
                f"Strengths of shape {tuple(m.shape)} were given for {a.shape[1]} vectors. Their "
                "last axis holds one strength for each."
            )
        if not m.ndim and bool(m):
            raise BeliefError(
                f"The strength {float(m):g} does not say of which vector. Give [..., vector]."
            )
        g = torch.stack(
            [grown(x, float(rate), self.form) for x, rate in zip(n.unbind(-1), alpha, strict=True)],
            dim=-1,
        )
        pushed = m @ a.T if m.ndim else torch.zeros_like(b)
        return pushed + b + gamma * g

    def posterior(self, evidence: Any, strength: Any = 0.0) -> Tensor:
        """Return [..., concept]: probabilities that sum to one."""
        return self.log_weights(evidence, strength).softmax(-1)

    def log_odds(self, name: str, evidence: Any, strength: Any = 0.0) -> Tensor:
        """Return [...]: the log-odds of one concept against all others together, in nats.

        Raises:
            BeliefError: no such concept.
        """
        if name not in self.names:
            raise BeliefError(f"There is no concept {name!r}. They are {', '.join(self.names)}.")
        weights = self.log_weights(evidence, strength)
        at = list(self.names).index(name)
        others = [place for place in range(len(self.names)) if place != at]
        return weights[..., at] - weights[..., others].logsumexp(-1)

    def centred(self) -> "Concepts":
        """Return the same beliefs with a and b of mean zero over concepts."""
        a, b, gamma, alpha = self._values
        return Concepts(self.names, a - a.mean(0), b - b.mean(), gamma, alpha, self.form)

    def spec(self) -> dict[str, object]:
        """Return the plain dict with tensors from which `steer.load_artifact` rebuilds it."""
        return specs.encode(self)

    @property
    def digest(self) -> str:
        """sha256 over names and parameters."""
        return specs.digest(self.spec())

    def __repr__(self) -> str:
        """Print one line for each concept."""
        a, b, gamma, alpha = self._values
        lines = []
        for at, name in enumerate(self.names):
            pushes = " ".join(f"{float(x):+.3g} m{i}" for i, x in enumerate(a[at]))
            lines.append(
                f"  {name}: {pushes} {float(b[at]):+.3g} + {float(gamma[at]):.3g} "
                f"g(N; {float(alpha[at]):.3g})"
            )
        return "Concepts(\n" + "\n".join(lines) + "\n)"
