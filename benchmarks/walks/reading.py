"""Walks as prompts, and what the model does with them: masses on nodes and states of nodes.

Nodes are called by common nouns of one token, dealt anew in every walk, so that no meaning of a
word can tell its neighbours.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import steer
from benchmarks.errors import BenchmarkError
from benchmarks.walks.graphs import WalkGraph, walk

_NOUNS = """
apple bird car egg house milk plane box sand sun mango rock math code phone tree bread
river clock paper horse stone table glass shoe lamp cloud train ship garden chair door
window book knife spoon hat coat ring bell drum flag gate hill lake moon nest pen road
salt seed snow star tent wall wheel wolf bear fish lion frog
"""
NOUNS = tuple(_NOUNS.split())
LENGTHS = (50, 100, 200, 400, 700)
"""Context lengths, in nodes."""
ASKED = 8
"""Last positions before each length at which the next node is asked for."""
WINDOW = 150
"""Last positions before each length over which a node's states are averaged."""


@dataclass(frozen=True, slots=True, eq=False)
class Walked:
    """Some walks on one graph, read."""

    graph: WalkGraph
    nodes: Int[Tensor, "walk step"]
    tokens: Int[Tensor, "walk node"]
    """What each node is called."""
    rows: list[list[int]]
    mass: Float[Tensor, "walk length asked node"]
    """Probability of each node as the next one."""
    states: Float[Tensor, "walk block step d_model"]
    shuffled: bool

    @property
    def legal(self) -> Float[Tensor, "walk length"]:
        """Mass on neighbours of the current node, averaged over the asked positions."""
        at = torch.stack([torch.arange(length - ASKED, length) for length in LENGTHS])
        near = self.graph.adjacency[self.nodes[:, at]].to(self.mass)
        return (self.mass * near).sum(-1).mean(-1)


def nouns_of(lm: steer.LM) -> list[int]:
    """Return the tokens of the nouns that are one token each, with a space before.

    Raises:
        BenchmarkError: too few of them for the largest graph.
    """
    found = []
    for noun in NOUNS:
        ids = lm.tokenizer(f" {noun}", add_special_tokens=False)["input_ids"]
        if len(ids) == 1:
            found.append(int(ids[0]))
    if len(set(found)) < 18:
        raise BenchmarkError(
            f"Only {len(set(found))} of {len(NOUNS)} nouns are one token each for this tokenizer, "
            "and a walk names 18 nodes by one token each. Use another model."
        )
    return list(dict.fromkeys(found))


def read(lm: steer.LM, graph: WalkGraph, seeds: range, *, shuffled: bool = False) -> Walked:
    """Walk, and read every block's states and the masses at the asked positions.

    Args:
        lm: the model.
        graph: where to walk.
        seeds: one walk each.
        shuffled: the same tokens in a random order: a context without a graph.
    """
    nouns = torch.tensor(nouns_of(lm))
    nodes, tokens = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed + 1000)
        steps = walk(graph, LENGTHS[-1], seed)
        nodes.append(steps[torch.from_numpy(rng.permutation(len(steps)))] if shuffled else steps)
        tokens.append(nouns[torch.from_numpy(rng.permutation(len(nouns))[: graph.n])])
    called = torch.stack(tokens)
    bos = lm.tokenizer.bos_token_id
    first = [] if bos is None else [int(bos)]  # type: ignore[arg-type]
    rows = [first + called[i][nodes[i]].tolist() for i in range(len(nodes))]
    mass = torch.stack(
        [_mass(lm, row, names, len(first)) for row, names in zip(rows, called, strict=True)]
    )
    sites = lm.sites("resid_post")
    acts = lm.capture(rows, sites, scope=steer.ALL)
    states = torch.stack([acts[site].float() for site in sites], 1)[:, :, len(first) :]
    return Walked(graph, torch.stack(nodes), called, rows, mass, states, shuffled)


def _mass(lm: steer.LM, row: list[int], names: Tensor, shift: int) -> Tensor:
    """Return [length, asked, node]: probabilities after each asked position of one walk."""
    ends = [shift + length for length in LENGTHS]
    scope = steer.span(ends[0] - ASKED, ends[0])
    for end in ends[1:]:
        scope = scope | steer.span(end - ASKED, end)
    swept = steer.sweep(
        lm, [row], [[]], lambda logits, _: logits.float().softmax(-1)[..., names], scope=scope
    )
    return swept.natural[0].reshape(len(ends), ASKED, len(names))


def centroids(
    walked: Walked, length: int, *, upto: int | None = None
) -> tuple[Float[Tensor, "walk block node d_model"], Bool[Tensor, "walk node"]]:
    """Return each node's mean state over the last positions before a length, and which were met.

    A node that those positions miss has the state of the last time that it was met before them. One
    that the walk has not met has no state: its row is zero and its flag false.

    Args:
        walked: the walks.
        length: of the context.
        upto: leave out so many of the last positions.
    """
    end = length - (upto or 0)
    past = torch.nn.functional.one_hot(walked.nodes[:, :end], walked.graph.n)
    last = (past * torch.arange(1, end + 1)[:, None]).amax(1) - 1
    at = past.float()
    at[:, : max(0, end - WINDOW)] = 0
    missed = at.sum(1) == 0
    met = last >= 0
    late = torch.nn.functional.one_hot(last.clamp_min(0), end).mT * (missed & met)[:, None]
    at = at + late
    total = torch.einsum("wbsd,wsn->wbnd", walked.states[:, :, :end], at)
    return total / at.sum(1).clamp_min(1)[:, None, :, None], met
