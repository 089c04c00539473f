"""Gradients of outputs by a state in the middle: only the blocks above it run, on one token a row.

The prompts run once, without a graph. After that each row of a pass is the last token of a prompt,
which joins at the block of the site with the state that is written there, and attends to its
prompt's keys and values. A model that cannot be started in the middle (see `steer.engine.proof`)
runs whole prompts instead; the numbers are the same and the cost is all blocks and tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.bookkeeping import Pass, Sequences
from steer.capture import takes_columns
from steer.engine.base import Asked, Base, Part, call, names_of, prompt_of, run_base
from steer.engine.climb import Climber
from steer.engine.plan import Chunk, begun_by
from steer.engine.prefix import Prefix
from steer.engine.proof import proof_of
from steer.engine.starts import block_of
from steer.engine.work import refuse_attached
from steer.errors import PlanError
from steer.generation import pad_token
from steer.interventions import Custom
from steer.lm import LM
from steer.passes import cache_name
from steer.scopes import LAST
from steer.sites import AnySite, Site
from steer.step import Step

Write = Callable[[Tensor], Tensor]
"""The states [row, d_model] that the prompts have at the site -> those that are written."""


@dataclass(frozen=True, slots=True, eq=False)
class Suffix:
    """A model above a site, ready to be run at the last tokens of some prompts."""

    lm: LM
    site: Site
    base: Base
    why_whole: str
    """Why whole prompts run; empty where they need not."""
    narrowed: frozenset[str] | None
    one_token: bool

    @property
    def n_prompts(self) -> int:
        """How many prompts there are."""
        return len(self.base.part.rows)

    def logits(self, prompts: Tensor, write: Write) -> Tensor:
        """Return [row, vocab]: the logits of some prompts with a state written at their last token.

        Args:
            prompts: [row], their numbers; one may come several times.
            write: what is written, in the order of the rows; differentiable.
        """
        if self.why_whole:
            return self._whole(prompts, write)
        registry, part = self.lm.registry, self.base.part
        assert self.base.cache is not None
        n, n_layers = len(prompts), self.lm.n_layers
        block = block_of(self.site, n_layers)
        chunk = Chunk(torch.arange(n), 1, begun_by(torch.full((n,), block), n_layers))
        before = part.columns - 1
        seen = part.mask[prompts, :before].any()
        prefix = Prefix(self.base.cache, before) if bool(seen) else None
        names = names_of(registry)
        arguments = part.arguments(prompts, 1, part.columns if prefix else 1, names)
        arguments["use_cache"] = prefix is not None
        arguments[cache_name(names)] = None if prefix is None else prefix.cache()
        if takes_columns(registry.model):
            arguments["logits_to_keep"] = 1
        declared = prompt_of(part, prompts, part.columns if prefix else 1)
        sequences = Sequences(declared, part.rows[prompts], self.n_prompts)
        found: list[Tensor] = []

        def keep(site: AnySite, h: Tensor, now: Pass) -> None:
            del site, now
            found.append(h[:, -1])

        climber = Climber(n_layers, self.narrowed, one_token=self.one_token)
        climber.load(chunk, prompts, self.base.states, prefix)
        wiring = registry.wire([self._edit(write)])
        run = registry.climbing(wiring, [(Site.logits(), keep)], climber)
        with registry.sequences(sequences):
            run.start()
            try:
                call(registry, arguments)
            finally:
                run.stop()
        (logits,) = found
        return logits

    def _whole(self, prompts: Tensor, write: Write) -> Tensor:
        part, lm = self.base.part, self.lm
        arguments = part.arguments(prompts, part.columns, part.columns, names_of(lm.registry))
        arguments["use_cache"] = False
        if takes_columns(lm.registry.model):
            arguments["logits_to_keep"] = 1
        given = {k: v.to(lm.device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        declared = prompt_of(part, prompts, part.columns)
        sequences = Sequences(declared, part.rows[prompts], self.n_prompts)
        with lm.registry.sequences(sequences), lm.attached([self._edit(write)]):
            return lm.model(**given).logits[:, -1]

    def _edit(self, write: Write) -> Custom:
        # Left-padded: the last token of every row stands in the last column.
        def fn(h: Tensor, _: Step) -> Tensor:
            return torch.cat([h[:, :-1], write(h[:, -1]).to(h.dtype)[:, None]], dim=1)

        return Custom(self.site, fn, LAST)


def suffix_of(lm: LM, rows: Sequence[Sequence[int]], site: Site) -> Suffix:
    """Return the model above a site, with the prompts run up to there.

    Raises:
        PlanError: no prompt, an attached plan around it, or within inference mode.
    """
    if not rows:
        raise PlanError(
            "There are no prompts, so there is no output to follow. Give prompts whose states are "
            "moved along the path; those whose answer is the start of it, as a rule."
        )
    require_gradients()
    refuse_attached(lm.registry)
    proof = proof_of(lm.registry)
    part = Part.of(list(range(len(rows))), rows, pad_token(lm.tokenizer))
    block, whole = block_of(site, lm.n_layers), bool(proof.why_not)
    # Nothing joins before block 0: such a row runs all blocks, with what the embedding gives it.
    blocks = [block] if block else []
    asked = Asked(LAST, Site.logits(), [] if whole else blocks, cached=not whole)
    with torch.no_grad():
        base = run_base(lm.registry, part, asked, Climber(lm.n_layers), len(rows))
    return Suffix(lm, site, base, proof.why_not, proof.narrowed, proof.one_token)


def require_gradients() -> None:
    """Refuse a search by gradients where none are kept.

    Raises:
        PlanError: within torch.inference_mode.
    """
    if torch.is_inference_mode_enabled():
        raise PlanError(
            "A pull-back was asked for within torch.inference_mode, which keeps no gradients. Call "
            "it outside, or under torch.no_grad, which is lifted here."
        )
