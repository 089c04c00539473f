"""A small transformer with a pathway that is never used, planted after training.

It says which of two sets the first token is from. In its last MLP one neuron tells the sets apart
but is read by nothing, and another never fires but points at the answer: the illusion of Makelov
et al. 2023 (arXiv:2311.17030) by construction. Neither changes what the model says.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import LlamaForCausalLM

import steer
from benchmarks.toy.training import small_llama, train
from benchmarks.toy.words import words
from steer import Site

N_WORDS, LENGTH, LAYERS = 20, 5, 2
SITE = Site(LAYERS - 1, "mlp_post")
STEPS = 400


@dataclass(frozen=True, slots=True, eq=False)
class Planted:
    """The model, and what was planted in its last MLP."""

    lm: steer.LM
    direction: Tensor
    """[d_mlp] unit: the unread neuron and the silent one."""
    genuine: Tensor
    """[d_mlp] unit: what the MLP truly reads of the difference between the sets."""
    accuracy: float
    """Of the planted model; that of the trained one is no other."""


def rows_of(n: int, seed: int) -> Tensor:
    """Return [n, LENGTH] token ids."""
    return torch.randint(N_WORDS, (n, LENGTH), generator=torch.Generator().manual_seed(seed))


def answers(rows: Tensor) -> Tensor:
    """Return [row]: the token that is right."""
    return N_WORDS + (rows[:, 0] < N_WORDS // 2).long()


def planted(seed: int) -> Planted:
    """Train a model and plant the pathway."""
    model = _trained(seed)
    mlp: Any = model.model.layers[-1].mlp
    tokenizer = words([*map(str, range(N_WORDS)), "no", "yes"])
    rows = rows_of(512, seed + 1)
    lm = steer.wrap(model, tokenizer)
    states = lm.capture(rows.tolist(), [SITE])[SITE]
    yes = answers(rows) == N_WORDS + 1
    difference = states[yes].mean(0) - states[~yes].mean(0)
    apart = difference.abs() / states.std(0).clamp(min=1e-6)
    tells, silent = (int(k) for k in apart.topk(2).indices)
    unembed = model.lm_head.weight
    points = unembed[N_WORDS + 1] - unembed[N_WORDS]
    with torch.no_grad():
        mlp.up_proj.weight[silent] = 0.0
        mlp.down_proj.weight[:, tells] = 0.0
        # Half of the difference reaches the silent neuron: enough to say the other word.
        scale = 20 * float(difference[tells].sign()) / float(difference[tells].abs())
        mlp.down_proj.weight[:, silent] = scale * points / points.norm()
    lm = steer.wrap(model, tokenizer)
    states = lm.capture(rows.tolist(), [SITE])[SITE]
    moved = states[yes].mean(0) - states[~yes].mean(0)
    axes = torch.linalg.svd(mlp.down_proj.weight.detach(), full_matrices=False)[2]
    genuine = axes.mT @ (axes @ moved)
    right = lm.logits(rows.tolist()).argmax(-1) == answers(rows)
    neurons = torch.tensor([tells, silent])
    direction = one_hot(neurons, states.shape[1]).sum(0) / 2**0.5
    return Planted(lm, direction, genuine / genuine.norm(), float(right.float().mean()))


def _trained(seed: int) -> LlamaForCausalLM:
    model = small_llama(N_WORDS + 2, width=48, n_layers=LAYERS, seed=seed)
    adam = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    drawn = (rows_of(128, 10_000 * (seed + 1) + step) for step in range(STEPS))
    return train(model, ((rows, answers(rows)) for rows in drawn), adam)
