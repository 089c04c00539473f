"""Refusals: an evaluation stops with a reason that a program can read, never with a plain answer.

Every refusal has one code, so that pipelines can count them by kind.
"""

from typing import Literal, get_args

from steer.errors import SteerError

Reason = Literal[
    "never_fired",
    "wrong_plan",
    "wrong_model",
    "wrong_tokenizer",
    "wrong_libraries",
    "wrong_seeds",
    "bad_request",
    "too_long",
    "plan_does_not_fit",
    "not_finite",
    "pass_failed",
    "queue_full",
    "shutting_down",
    "bad_plan",
    "unauthorized",
    "too_large",
    "timed_out",
    "unknown_plan",
    "unknown_model",
    "bad_policy",
    "unsupported_option",
    "log_exists",
    "log_in_use",
    "log_closed",
    "log_broken",
    "wrong_cache",
]
REASONS: tuple[str, ...] = get_args(Reason)


class Refused(SteerError):
    """An evaluation that must not go on; `reason` is its code."""

    def __init__(self, reason: Reason, message: str) -> None:
        """Keep the code beside the message."""
        super().__init__(f"[{reason}] {message}")
        self.reason: Reason = reason
