"""Trajectories of gymnasium's mountain car, as a network sees them: noisy pictures and pedals.

A picture is one row of pixels along the road, with a blob where the car is. Neither position nor
velocity is given as a number; the velocity has to be inferred from several pictures.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.errors import BenchmarkError

LOW, HIGH = (-1.2, -0.07), (0.6, 0.07)
"""The ranges of position and velocity."""
GRID = (12, 10)
"""Bins of the next position and of the next velocity."""
WIDTH = 0.75
"""Standard deviation of the target about the true next state, in bins."""
STEPS = 32
PIXELS, BLOB, NOISE = 24, 1.2, 0.05
"""Of a picture: how many, the standard deviation of the blob in pixels, that of each pixel."""
STAYS = 0.85
"""How often the pedal stays as it is."""


@dataclass(frozen=True, slots=True)
class Drives:
    """Some trajectories of as many steps each."""

    seen: Float[Tensor, "drive step input"]
    """The pixels, and the pedal, one-hot."""
    states: Float[Tensor, "drive step 2"]
    """True position and velocity when the pedal is chosen, each from 0 to 1 of its range."""
    after: Float[Tensor, "drive step 2"]
    """The true state one step later."""


def drive(n: int, seed: int) -> Drives:
    """Return n trajectories from starts all over the road, at all speeds.

    Raises:
        BenchmarkError: gymnasium is not installed.
    """
    # An optional dependency.
    try:
        import gymnasium
    except ImportError:
        raise BenchmarkError(
            "The trajectories are those of gymnasium's MountainCar-v0, and gymnasium is not "
            'installed. Run `pip install "manifold-steer[worlds]"`.'
        ) from None
    env = cast("Any", gymnasium.make("MountainCar-v0")).unwrapped
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    low, high = np.array(LOW), np.array(HIGH)
    states = np.empty((n, STEPS + 1, 2))
    pedals = np.empty((n, STEPS), np.int64)
    for i in range(n):
        env.state = rng.uniform(low, high)
        states[i, 0] = env.state
        pedal = rng.integers(3)
        for t in range(STEPS):
            pedal = pedal if rng.random() < STAYS else rng.integers(3)
            pedals[i, t] = pedal
            states[i, t + 1] = env.step(int(pedal))[0]
    share = torch.from_numpy((states - low) / (high - low)).float()
    noise = NOISE * torch.from_numpy(rng.normal(size=(n, STEPS, PIXELS))).float()
    seen = picture(share[:, :-1, 0]) + noise
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(pedals), 3).float()
    return Drives(torch.cat([seen, one_hot], -1), share[:, :-1], share[:, 1:])


def picture(position: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch pixel"]:
    """Return the pixels for positions in shares of the road, without noise."""
    away = (position[..., None] - torch.linspace(0, 1, PIXELS)) * (PIXELS - 1) / BLOB
    return (-away.square() / 2).exp()


def targets(share: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch bin"]:
    """Return the distributions over bins that the network is to say: normal about a state.

    The histogram loss of Imani and White 2018 (arXiv:1806.04613), here over two numbers.
    """
    sides = []
    for axis, count in enumerate(GRID):
        edges = torch.linspace(0, 1, count + 1)
        below = torch.special.ndtr((edges - share[..., axis, None]) * count / WIDTH)
        mass = below.diff(dim=-1)
        sides.append(mass / mass.sum(-1, keepdim=True))
    return (sides[0][..., :, None] * sides[1][..., None, :]).flatten(-2)


def bin_centres() -> Float[Tensor, "bin 2"]:
    """Return the middle of each bin, in shares of the ranges."""
    return torch.cartesian_prod(*[(torch.arange(count) + 0.5) / count for count in GRID])
