"""Measures for patching: functions of the logits at the last token, one number per row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from steer.engine import Batch, Measure
from steer.errors import PlanError


def logit_difference(right: Sequence[int], wrong: Sequence[int]) -> Measure:
    """Return the measure of each pair's right answer over its wrong one, in logits.

    Linear in the logits, as advised by Zhang and Nanda 2023 (arXiv:2309.16042): probabilities
    saturate, and hide what suppresses the answer.

    Args:
        right: one token id for each pair of prompts.
        wrong: the same.

    Raises:
        PlanError: lists of different lengths; when used, fewer than there are prompts.
    """
    if len(right) != len(wrong) or not right:
        raise PlanError(
            f"There are {len(right)} right and {len(wrong)} wrong answers. Each pair of prompts "
            "has one of each. Give two lists of the same length."
        )
    both = torch.tensor([list(right), list(wrong)])

    def measure(logits: Tensor, batch: Batch) -> Tensor:
        at = _of_rows(both, batch).to(logits.device)
        picked = logits.float().gather(-1, at.mT)
        return picked[:, 0] - picked[:, 1]

    return measure


def log_probability(answers: Sequence[int]) -> Measure:
    """Return the measure of each pair's answer: its log-probability, in nats.

    Raises:
        PlanError: when used, fewer answers than prompts.
    """
    one = torch.tensor([list(answers)])

    def measure(logits: Tensor, batch: Batch) -> Tensor:
        at = _of_rows(one, batch).to(logits.device)
        return logits.float().log_softmax(-1).gather(-1, at.mT)[:, 0]

    return measure


def _of_rows(answers: Tensor, batch: Batch) -> Tensor:
    if int(batch.rows.max()) >= answers.shape[1]:
        raise PlanError(
            f"There are {answers.shape[1]} answers for {int(batch.rows.max()) + 1} prompts. The "
            "measure needs one for each. Give as many as there are pairs."
        )
    return answers[:, batch.rows]
