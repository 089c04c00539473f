"""Generation through HuggingFace's own generate, with the log-probability of each token kept."""

import inspect
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from steer.bookkeeping import Pass, Sequences
from steer.context import ATTACHED
from steer.errors import PlanError, did_you_mean
from steer.generating import end_tokens, option_of
from steer.interventions.plans import Plan
from steer.passes import CACHE_NAMES
from steer.prompts import padded, sequences_of
from steer.receipt import Receipt
from steer.registry import HookRegistry
from steer.sites import AnySite, Site


class Generations(list[str]):
    """The generated texts, one per prompt (times return sequences), and what made them.

    `tokens`: the new token ids of each, up to and with the end token. `log_probs`: for each, the
    natural-log probability of each of its tokens under the model's own (steered, not reweighted)
    logits; None under beams, which reorder rows. `receipt`: what each intervention did.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokens: Sequence[Sequence[int]],
        log_probs: Sequence[Tensor] | None,
        receipt: Receipt,
    ) -> None:
        """Hold the results of one call."""
        super().__init__(texts)
        self.tokens = [list(row) for row in tokens]
        self.log_probs = log_probs
        self.receipt = receipt

    def _repr_html_(self) -> str:
        from html import escape  # only a notebook asks for it

        return "<ol>" + "".join(f"<li><pre>{escape(text)}</pre></li>" for text in self) + "</ol>"


class LogProbs:
    """Keeps the log-probability of each chosen token, one pass after it was predicted."""

    def __init__(self) -> None:
        """Start before the first pass."""
        self.waiting: Tensor | None = None
        self.kept: list[Tensor] = []

    def take(self, _site: AnySite, logits: Tensor, now: Pass) -> None:
        """Score the token that the last logits led to, and remember these logits."""
        ids = now.tokens.ids
        if self.waiting is not None and ids is not None:
            self.choose(ids[:, -1])
        tokens = now.tokens
        assert tokens.prompt_lengths is not None
        last = tokens.positions[:, -1] >= tokens.prompt_lengths - 1
        self.waiting = logits[:, -1].detach() if bool(last.any()) else None

    def choose(self, ids: Tensor) -> None:
        """Record the log-probability of the chosen tokens [row]."""
        assert self.waiting is not None
        chosen = ids.to(self.waiting.device)[:, None]
        self.kept.append(self.waiting.float().log_softmax(-1).gather(1, chosen)[:, 0])
        self.waiting = None

    def finished(self, new: Tensor) -> Tensor | None:
        """Return [row, new token] of a generation that is over, and begin anew."""
        if self.waiting is not None and new.shape[1] > len(self.kept):
            self.choose(new[:, -1])
        every = torch.stack(self.kept, dim=1).cpu() if self.kept else None
        self.waiting, self.kept = None, []
        return every


def generate_rows(
    registry: HookRegistry,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    plan: Plan,
    options: Mapping[str, Any],
    seed: int | None,
    takers: Sequence[tuple[AnySite, Callable[[AnySite, Tensor, Pass], None]]] = (),
) -> Generations:
    """Generate for rows of token ids as one batch, padded on the left.

    Raises:
        PlanError: an argument that generate does not know.
        SteerError: the plan does not fit the model or the rows.
    """
    refuse_unknown(registry.model, options)
    ids, mask = padded(rows, pad_token(tokenizer), left=True)
    beams = int(option_of(registry.model, options, "num_beams") or 1)
    recorder = LogProbs()
    record = [(Site.logits(), recorder.take)] if beams == 1 else []
    run = registry.taking(plan, [*record, *takers])
    declared = sequences_of(ids, mask, range(len(rows)), len(rows))
    with run:
        tokens, log_probs = generate_declared(
            registry, tokenizer, declared, options, seed, recorder if record else None
        )
    texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in tokens]
    return Generations(texts, tokens, log_probs, run.receipt)


def generate_declared(
    registry: HookRegistry,
    tokenizer: PreTrainedTokenizerBase,
    declared: Sequences,
    options: Mapping[str, Any],
    seed: int | None,
    recorder: LogProbs | None,
) -> tuple[list[list[int]], list[Tensor] | None]:
    """Generate for declared rows, within a run that has been entered.

    Returns:
        The new tokens of each row, and their log-probabilities where a recorder takes them.
    """
    model, pad = registry.model, pad_token(tokenizer)
    assert declared.prompt is not None
    assert declared.prompt.ids is not None
    ids, mask = declared.prompt.ids, declared.prompt.mask
    device = next(model.parameters()).device
    asked = {**options, "pad_token_id": options.get("pad_token_id", pad)}
    if seed is not None:
        asked["logits_processor"] = LogitsProcessorList(
            [*(asked.get("logits_processor") or ()), seeded(seed)]
        )
    declared.generating = True
    with torch.no_grad(), registry.sequences(declared):
        out = model.generate(  # type: ignore[operator]
            input_ids=ids.to(device), attention_mask=mask.long().to(device), **asked
        )
    sequences = out if isinstance(out, Tensor) else out.sequences
    new = sequences[:, ids.shape[1] :].cpu()
    tokens = [trimmed(row, end_tokens(model, asked)) for row in new.tolist()]
    if recorder is None:
        return tokens, None
    every = recorder.finished(new)
    if every is None:
        return tokens, None
    return tokens, [row[: len(kept)] for row, kept in zip(every, tokens, strict=True)]


def seeded(seed: int) -> LogitsProcessor:
    """Return a processor after which generate samples from a generator of its own.

    generate takes no generator. Seeding the global one would change what other threads draw, and
    they what it draws. So the scores are of a class that hands torch.multinomial the generator; the
    class lasts through temperature, top-k and the rest. Same draws as torch.manual_seed(seed).
    """
    generators: dict[torch.device, torch.Generator] = {}

    class Scores(Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is not torch.multinomial:
                return super().__torch_function__(func, types, args, kwargs or {})
            place = args[0].device
            if place not in generators:
                generators[place] = torch.Generator(place).manual_seed(seed)
            plain = args[0].as_subclass(Tensor)
            return func(plain, *args[1:], **{**(kwargs or {}), "generator": generators[place]})

    class Seeded(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
            return scores.as_subclass(Scores)

    return Seeded()


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id to pad with: the tokenizer's own, else its end token, else 0; always masked."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    return 0


def trimmed(row: Sequence[int], ends: set[int]) -> list[int]:
    """Return a row up to and with its first end token."""
    for at, token in enumerate(row):
        if token in ends:
            return list(row[: at + 1])
    return list(row)


def refuse_unknown(model: object, options: Mapping[str, Any]) -> None:
    """Refuse arguments that generate does not know, which it might otherwise ignore.

    Raises:
        PlanError: names the nearest argument.
    """
    known = set(GenerationConfig().to_dict())
    known |= set(inspect.signature(type(model).generate).parameters)  # type: ignore[attr-defined]
    known |= {*CACHE_NAMES, "max_new_tokens", "disable_compile", "stop_strings", "tokenizer"}
    for name in ("input_ids", "inputs", "attention_mask", "inputs_embeds"):
        if name in options:
            raise PlanError(
                f"generate was given {name}, which lm.generate makes from the prompts. Pass token "
                "ids as the prompts: lm.generate([[1, 2, 3]])."
            )
    for name, instead in (("generation_config", "its settings"), ("max_length", "max_new_tokens")):
        if options.get(name) is not None:
            raise PlanError(
                f"generate was given {name}, but lm.generate states max_new_tokens and do_sample "
                f"itself, so that part of it would be overruled in silence. Pass {instead} as "
                "arguments, or call lm.model.generate inside lm.attached(plan)."
            )
    for name in options:
        if name not in known:
            raise PlanError(
                f"generate has no argument {name!r}.{did_you_mean(name, known)} It would be "
                "ignored or fail in the middle of a pass."
            )


class Stream(Iterator[list[str]]):
    """Yields the new text of each row, token by token; `receipt` once it is exhausted.

    The plan is attached in the worker's own context, so nothing leaks to the consumer. Closing it
    early stops the worker.
    """

    def __init__(
        self,
        registry: HookRegistry,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Sequence[int]],
        plan: Plan,
        options: Mapping[str, Any],
        seed: int | None,
    ) -> None:
        """Check everything that can be refused, then start."""
        self._stop = threading.Event()
        refuse_unknown(registry.model, options)
        registry.wire(plan)
        self.receipt: Receipt | None = None
        self._done = False
        self._tokens: list[list[int]] = [[] for _ in rows]
        self._said = [""] * len(rows)
        self._tokenizer = tokenizer
        self._ends = end_tokens(registry.model, options)
        self._queue: queue.Queue[list[int] | BaseException | Receipt] = queue.Queue()
        asked = {
            **options,
            "streamer": _Pieces(self._queue),
            "stopping_criteria": StoppingCriteriaList([_Stopped(self._stop)]),  # type: ignore[list-item]
        }
        out = self._queue  # the worker must not hold the stream, or a dropped one would never stop

        def made() -> Receipt:
            return generate_rows(registry, tokenizer, rows, plan, asked, seed).receipt

        # Plans attached around the stream hold in its worker too, as they do around lm.generate.
        outer = [run for run in ATTACHED.get() if run.registry is registry and run.open]
        steered = outer[-1].bind(made) if outer else made

        def work() -> None:
            try:
                out.put(steered())
            except BaseException as error:  # handed to the consumer, who raises it
                out.put(error)

        self._worker = threading.Thread(target=work, name="steer-stream", daemon=True)
        self._worker.start()

    def __next__(self) -> list[str]:
        """Return the next piece of text of each row."""
        if self._done:
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, list):
            return [self._piece(row, token) for row, token in enumerate(item)]
        self._done = True
        self._worker.join()
        if isinstance(item, BaseException):
            raise item
        self.receipt = item
        rest = [self._text(row)[len(said) :] for row, said in enumerate(self._said)]
        if any(rest):  # bytes that never became a character
            return rest
        raise StopIteration

    def _piece(self, row: int, token: int) -> str:
        tokens = self._tokens[row]
        if tokens and tokens[-1] in self._ends:
            return ""
        tokens.append(token)
        text = self._text(row)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""  # a character whose bytes are not complete yet
        new, self._said[row] = text[len(self._said[row]) :], text
        return new

    def _text(self, row: int) -> str:
        return str(self._tokenizer.decode(self._tokens[row], skip_special_tokens=True))

    def close(self) -> None:
        """Stop the worker and wait for it; nothing stays attached."""
        self._stop.set()
        self._worker.join()

    def __enter__(self) -> "Stream":
        """Return the stream."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the worker."""
        self.close()

    def __del__(self) -> None:
        """Stop the worker of a stream that nobody reads any more."""
        self._stop.set()


class _Stopped:
    """Ends a generation once an event is set."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def __call__(self, input_ids: Tensor, _scores: object, **_: object) -> Tensor:
        return torch.full((input_ids.shape[0],), self.stop.is_set(), device=input_ids.device)


class _Pieces(BaseStreamer):
    """Hands each new column of token ids to a queue; the first call is the prompt."""

    def __init__(self, out: "queue.Queue[Any]") -> None:
        self.out, self.prompt = out, True

    def put(self, value: Tensor) -> None:
        """Pass on one token per row."""
        if not self.prompt:
            self.out.put(value.reshape(-1).tolist())
        self.prompt = False

    def end(self) -> None:
        """Nothing to do: the worker says when it is done."""
