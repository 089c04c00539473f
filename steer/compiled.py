"""The compiled path: one permanent dispatcher per site, steered by the contents of buffers.

A hook added after the first compiled call is ignored, and a hook that reads a ContextVar breaks the
graph. So a session registers its dispatchers first, compiles afterwards, and loads a plan by
copying numbers (`steer.lowered`): nothing is compiled again when strengths, directions, scopes or
plans change. Eager plans are `lm.attached`.
"""

import copy
import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch.utils.hooks import RemovableHandle
from transformers import LogitsProcessorList, StaticCache, StoppingCriteriaList

from steer.bookkeeping import Pass, Sequences
from steer.capture import Taken, columns_in, takes_columns
from steer.context import ATTACHED
from steer.dispatcher import ACTIVE, dispatcher, fresh_forward, refuse_options, taps_of
from steer.errors import PlanError, UnsupportedModel
from steer.generating import end_tokens, sequences_of_generate
from steer.generation import Generations, LogProbs, pad_token, refuse_unknown, seeded, trimmed
from steer.interventions.plans import Plan
from steer.lm import LM
from steer.loaded import Loaded
from steer.lowered import Buffers, Limits, limits_exceeded
from steer.passes import CACHE_NAMES, cache_of, cache_of_generate, last_columns, open_pass
from steer.prompts import Prompts, padded, sequences_of
from steer.registry import hooked
from steer.scopes import LAST, Scope, require_scope
from steer.sites import AnySite, Site

_HELD: "weakref.WeakKeyDictionary[nn.Module, str]" = weakref.WeakKeyDictionary()
_HELD_LOCK = threading.Lock()


def compiled(
    lm: LM,
    sites: Sequence[AnySite],
    *,
    batch: int = 8,
    tokens: int = 512,
    slots: int = 1,
    rank: int = 2,
    backend: str | Callable[..., Any] = "inductor",
    mode: str | None = None,
) -> "Compiled":
    """Return a context manager in which compiled passes are steered without compiling again.

    It takes whole streams and module outputs (embed, resid_pre, resid_post, attn_out, mlp_pre,
    mlp_post, mlp_out, ln_final) and what is affine in a token's state (Add, Ablate, Clamp, Scale,
    Rotate, Affine), also in Rows and under every scope. Decoding goes through transformers' own
    generate with one static cache; as there, prompts are read eagerly and single tokens compiled.
    Every call is padded to `batch` rows, so that one graph serves all. One session per model.

    Args:
        lm: the model; untouched after the block.
        sites: every site that a plan may name.
        batch: rows of a batch at most.
        tokens: tokens of a row at most, generated ones included.
        slots: edits at one site in a row at most.
        rank: directions of one Ablate at most (Clamp needs 1, Rotate 2).
        backend: of torch.compile.
        mode: of torch.compile; "reduce-overhead" records CUDA graphs.

    Raises:
        SiteNotFound: a site that the model lacks.
        PlanError: a site or size that the compiled path does not take; on entry, the model has a
            session or an attached plan.
        UnsupportedModel: several devices, an adapter, or a model compiled in place.

    >>> import steer, torch
    >>> lm, site = steer.load("tiny-llama"), steer.Site(1, "resid_post")
    >>> with compiled(lm, [site], batch=1, backend="eager") as fast:
    ...     out = fast.generate([[5, 6]], [steer.Add(site, torch.ones(64))], max_new_tokens=3)
    >>> int(out.receipt[0].edited)
    4
    """
    return Compiled(lm, sites, Limits(batch, tokens, slots, rank), backend, mode)


class Compiled:
    """A session on one model: made by `steer.compiled`, used as a context manager.

    `generate` and `logits` take a plan each; `attached` loads one for passes made by `model`.
    """

    def __init__(
        self,
        lm: LM,
        sites: Sequence[AnySite],
        limits: Limits,
        backend: str | Callable[..., Any],
        mode: str | None,
    ) -> None:
        """Check the sites and sizes; nothing is registered or compiled."""
        self._lm, self._limits = lm, limits
        self._backend, self._mode = backend, mode
        self._taps = taps_of(lm, sites)
        self._device = lm.device
        self._busy = threading.Lock()
        self._handles: list[RemovableHandle] = []
        self._bank: dict[Site, Buffers] = {}
        self._mask = torch.zeros(0)
        self._loaded: Loaded | None = None
        self._cache: StaticCache | None = None
        self._call: Callable[..., Any] | None = None

    def __repr__(self) -> str:
        """Say for which sites, how much fits and whether the session is open."""
        state = "open" if self._call is not None else "not open"
        return f"Compiled({self._named}; {self._limits}, {state})"

    @property
    def _named(self) -> str:
        return ", ".join(map(str, self._taps))

    def __enter__(self) -> "Compiled":
        """Register the dispatchers.

        Raises:
            PlanError: the model has a session already, or a plan attached.
        """
        model = self._lm.model
        self._refuse_eager()
        with _HELD_LOCK:
            holder = _HELD.get(model)
            if holder is not None:
                raise PlanError(
                    f"This model has a compiled session already, held by {holder}. A session "
                    "steers by the contents of one set of buffers, so two would overwrite each "
                    "other's plans. Leave that session first, or use lm.generate, which any "
                    "number of threads may."
                )
            _HELD[model] = f"thread {threading.current_thread().name!r} for {self._named}"
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def _open(self) -> None:
        limits, dtype = self._limits, self._lm.dtype
        precision = dtype if dtype == torch.float64 else torch.float32
        shape = (len(self._taps) * limits.slots, limits.batch, limits.tokens)
        self._mask = torch.zeros(shape, dtype=torch.bool, device=self._device)
        for at, (site, tap) in enumerate(self._taps.items()):
            width = self._lm.registry.layout.width(site)
            assert width is not None
            mine = self._mask[at * limits.slots : (at + 1) * limits.slots]
            self._bank[site] = Buffers.beside(mine, width, limits.rank, precision)
            hook = dispatcher(self._bank[site], self, tap.side)
            self._handles.append(hooked(self._lm.registry.module(tap.path), tap.side, hook))
        # One graph: frames after a break would share their code, so their graphs, with everybody.
        self._call = torch.compile(
            fresh_forward(), backend=self._backend, mode=self._mode, fullgraph=True
        )

    def __exit__(self, *_: object) -> None:
        """Remove the dispatchers and forget the graphs."""
        self._close()

    def _close(self) -> None:
        for handle in self._handles:
            handle.remove()
        for buffers in self._bank.values():
            buffers.clear()  # a graph of the user's own that was traced inside reads them still
        self._handles, self._bank, self._call, self._cache = [], {}, None, None
        with _HELD_LOCK:
            _HELD.pop(self._lm.model, None)

    # -- passes ----------------------------------------------------------------------------------

    @contextmanager
    def attached(self, plan: Plan) -> Iterator[Loaded]:
        """Load a plan for the passes that `model` makes in the block; gives `.receipt`.

        Raises:
            SteerError: the plan does not fit; on normal exit, something never fired.
        """
        with self._serving(plan) as loaded:
            yield loaded
        loaded.require_fired()

    def model(self, **inputs: Any) -> Any:
        """Run the model's forward compiled, under the loaded plan if there is one; no gradients.

        Inputs are not padded to the batch: each shape of them may be compiled. CUDA graphs
        overwrite the last output.

        Raises:
            PlanError: another thread holds the session, or the pass is larger than the buffers.
        """
        loaded = self._loaded
        if loaded is None or loaded.thread != threading.get_ident():
            with self._serving([]):  # which refuses while another thread's plan is loaded
                return self.model(**inputs)
        now, _ = open_pass((), inputs, loaded.declared, self._lm.registry.decode)
        return self._pass(loaded, now, inputs)

    def logits(self, prompts: Prompts, plan: Plan | None = None, *, scope: Scope = LAST) -> Tensor:
        """Return what `lm.logits` returns, from one compiled pass over all prompts.

        Raises:
            SteerError: as `lm.logits`; PlanError for more rows or tokens than there is room for.
        """
        require_scope(scope, "logits")
        rows = self._lm.rows(prompts)
        n, site, registry = len(rows), Site.logits(), self._lm.registry
        ids, mask = padded(rows, pad_token(self._lm.tokenizer), left=False)
        sequences = sequences_of(ids, mask, range(n), n)
        taken = Taken(scope, None)
        with self._serving(plan or []) as loaded:
            now = open_pass((), {"input_ids": ids}, sequences, registry.decode)[0]
            inputs = {"input_ids": self._filled(ids), "attention_mask": self._filled(mask.long())}
            keep: Tensor | int = 0
            if takes_columns(self._lm.model):
                keep = columns_in(scope, sequences, registry)
                inputs["logits_to_keep"] = keep.to(self._device)
            values = self._pass(loaded, now, {**inputs, "use_cache": False}).logits[:n].clone()
            taken.take(site, values, last_columns(now, keep, values))
        loaded.require_fired()
        return taken.assembled([site], n)[site]

    def _filled(self, values: Tensor) -> Tensor:
        # Rows up to `batch` repeat the first one: one shape, so one graph. They are never counted.
        limits_exceeded("rows", len(values), self._limits.batch, "batch")
        limits_exceeded("tokens", values.shape[1], self._limits.tokens, "tokens")
        more = values[:1].expand(self._limits.batch - len(values), -1)
        return torch.cat([values, more]).to(self._device)

    @contextmanager
    def _serving(self, plan: Plan) -> Iterator[Loaded]:
        self._require_open()
        if not self._busy.acquire(blocking=False):
            raise PlanError(
                "This compiled session is serving another call (or a block of fast.attached is "
                "open), and its buffers hold one plan at a time. Wait until that call is done, or "
                "use lm.generate, which any number of threads may."
            )
        try:
            self._refuse_eager()
            loaded = Loaded(self._lm.registry.wire(plan), plan, self._bank, self._limits)
            self._loaded = loaded
            try:
                yield loaded
            finally:
                loaded.settle()
        finally:
            self._loaded = None
            for buffers in self._bank.values():
                buffers.clear()
            self._busy.release()

    def _require_open(self) -> Callable[..., Any]:
        if self._call is None:
            raise PlanError(
                "This compiled session is not open, so no dispatcher is on the model and a pass "
                "would not be steered. Work inside `with steer.compiled(lm, sites) as fast:`."
            )
        return self._call

    def _refuse_eager(self) -> None:
        model, registry = self._lm.model, self._lm.registry
        here = [run for run in ATTACHED.get() if run.open and run.registry.model is model]
        if here or registry.live:
            raise PlanError(
                "A plan is attached to this model (lm.attached or lm.attach, here or in another "
                "thread). A compiled graph ignores hooks that came after it, so the two cannot "
                "work together. Detach it first, and give the whole plan to the compiled session."
            )

    def _pass(
        self, loaded: Loaded, now: Pass, inputs: dict[str, Any], *, eager: bool = False
    ) -> Any:
        call = self._require_open()
        masks = loaded.begin(now)
        self._mask[:, :, : masks.shape[2]].copy_(masks)
        before = ACTIVE.set(self)
        try:
            with torch.no_grad():
                return self._lm.model.forward(**inputs) if eager else call(self._lm.model, inputs)
        except Unsupported as error:
            raise UnsupportedModel(
                f"{self._lm.registry.layout.name} cannot be compiled as one graph, and a graph "
                f"with breaks could lose the dispatchers: {str(error).splitlines()[0]} Use "
                "lm.generate, or another attention implementation."
            ) from error
        finally:
            ACTIVE.reset(before)

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
        """Return what `lm.generate` returns, decoding compiled with the session's static cache.

        Sampling draws for all `batch` rows, so a seed gives lm.generate's text only if the batch
        is full. Arguments are those of `lm.generate`, without beams and caches of your own.

        Raises:
            SteerError: as `lm.generate`; PlanError for what the compiled path does not take.
        """
        model, rows = self._lm.model, self._lm.rows(prompts)
        options = {**hf, "max_new_tokens": max_new_tokens, "do_sample": do_sample}
        refuse_unknown(model, options)
        refuse_options(model, options)
        pad = pad_token(self._lm.tokenizer)
        ids, mask = padded(rows, pad, left=True)
        n, width = ids.shape
        limits_exceeded("tokens", width + max_new_tokens, self._limits.tokens, "tokens")
        asked = {**options, "pad_token_id": options.get("pad_token_id", pad)}
        given = {"input_ids": ids, "attention_mask": mask}
        sequences, _ = sequences_of_generate(model, (), {**asked, **given})
        if seed is not None:
            asked["logits_processor"] = LogitsProcessorList(
                [*(asked.get("logits_processor") or ()), seeded(seed)]
            )

        def filling(ids: Tensor, _scores: object, **_: object) -> Tensor:
            return torch.arange(len(ids), device=ids.device) >= n  # rows that only fill the batch

        stops = [*(asked.pop("stopping_criteria", None) or ()), filling]
        recorder = LogProbs()
        with self._serving(plan or []) as loaded:
            out = self._shell(loaded, sequences, recorder, n).generate(
                input_ids=self._filled(ids),
                attention_mask=self._filled(mask.long()),
                stopping_criteria=StoppingCriteriaList(stops),
                **{cache_of_generate(model): self._fresh_cache()},
                **{**asked, "disable_compile": True, "use_cache": True},
            )
        loaded.require_fired()
        new = (out if isinstance(out, Tensor) else out.sequences)[:n, width:].cpu()
        recorder.choose(new[:, -1])
        tokens = [trimmed(row, end_tokens(model, asked)) for row in new.tolist()]
        texts = [str(self._lm.tokenizer.decode(t, skip_special_tokens=True)) for t in tokens]
        every = torch.stack(recorder.kept, dim=1).cpu()
        log_probs = [row[: len(kept)] for row, kept in zip(every, tokens, strict=True)]
        return Generations(texts, tokens, log_probs, loaded.receipt)

    def _fresh_cache(self) -> StaticCache:
        # One for the whole session: another one would have other addresses, so another graph.
        if self._cache is None:
            config = self._lm.model.config
            self._cache = StaticCache(config=config, max_cache_len=self._limits.tokens)
        elif self._cache.is_initialized:
            self._cache.reset()
        return self._cache

    def _shell(self, loaded: Loaded, sequences: Sequences, recorder: LogProbs, n: int) -> Any:
        """Return a shallow copy of the model whose forward is a pass of this session.

        transformers' generate then runs as it is, and the user's model is not written to.
        """
        model, decode = self._lm.model, self._lm.registry.decode

        @functools.wraps(model.forward)
        def forward(**inputs: Any) -> Any:
            ids, past = inputs["input_ids"], cache_of(inputs)
            shown = {"input_ids": ids[:n].cpu(), CACHE_NAMES[0]: past}
            now = open_pass((), shown, sequences, decode)[0]
            # Prompts differ in length, and each length would be a graph.
            eager = now.tokens.from_start or ids.shape[1] > 1
            output = self._pass(loaded, now, inputs, eager=eager)
            # A clone: CUDA graphs overwrite the logits in the next pass.
            recorder.take(Site.logits(), output.logits[:n, -1:].clone(), now)
            return output

        shell = copy.copy(model)
        shell.__dict__["forward"] = forward
        config = copy.deepcopy(model.generation_config)
        config.cache_implementation = None  # Gemma names one, and generate takes not both
        shell.__dict__["generation_config"] = config
        return shell
