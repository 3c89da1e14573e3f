"""The decoder: a model prepared for drafting, with the output of plain decoding."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lessen.decoding.assistant import Assistant, Drafting
from lessen.decoding.call import Call
from lessen.decoding.copying import TextMemory
from lessen.decoding.cost import SIZES, CostCurve, costs_hold, measure_costs
from lessen.decoding.engine import choose_engine
from lessen.decoding.kv_forward import patched
from lessen.decoding.packing import Packing
from lessen.decoding.policy import KEY_LENGTH, Copier, plan
from lessen.decoding.probe import counts_padding
from lessen.decoding.protocol import Engine
from lessen.decoding.report import DecodeReport
from lessen.decoding.request import Request
from lessen.decoding.screened_head import screened, screened_head
from lessen.decoding.settings import (
    Settings,
    Shown,
    check_prompts,
    context_length,
    read_settings,
    rows_of,
    rules_for,
)
from lessen.decoding.switching import switch_of, switched_by_others
from lessen.decoding.view import condition
from lessen.errors import ConfigError, InputError

_CALIBRATION_CONTEXT = 128
_RESERVE = 1024
"""New tokens for which room is made at once."""


@dataclass(frozen=True)
class Completion:
    """The tokens that follow one prompt and why they end.

    `finish` is eos, stop string, criterion, time, length, or context: the model's positions are used up.
    """

    tokens: list[int]
    finish: str


class Decoder:
    """Decodes with a Hugging Face causal language model, faster where text repeats, with the output of plain decoding.

    The greedy output in float32 is that of `model.generate`, token for token, up to near ties within float rounding;
    sampled output follows the same law, and for one sequence is the same draw under the same seed. Earlier texts are
    remembered as copy sources for later calls: they change the speed, never the output. One difference is said: where
    `generate` goes on beyond the positions a model was made for, decoding stops with finish "context".

    The model is read through a view of its own (`lessen.decoding.view`) and never changed: it can meanwhile generate,
    move or be copied, and several threads may decode at once. A model whose weights, layers or device have changed is
    prepared again at the next call.

    Sources: CopySpec (arXiv 2502.08923) for the copy table, EMS-SD (arXiv 2405.07542) for unpadded batches. Different
    from both: the draft length follows the measured cost of a pass and the observed chance of acceptance.

    Args:
        model: a decoder-only language model with an attention cache.
        tokenizer: needed for stop strings only.
        key_length: tokens that must agree before anything is copied.
        assistant: a smaller model with the same vocabulary, used where nothing can be copied and while it pays.
        remember: tokens of earlier texts to keep as copy sources; 0 keeps none.
        pack: hold a packed copy of float32 CPU linear weights where a paired trial shows that products get quicker, and
            use it for the numbers of rows where they do (`packing.extra_bytes` of memory); `close` frees it.
        screen: choose greedy tokens through 8 bit scores with a certified bound where a paired trial shows that it is
            quicker (`lessen.decoding.screened_head`): the same tokens, for a quarter of a float32 head's bytes a token
            and as much more memory.
        costs: the cost curve, if known; measured in a few seconds otherwise. One that says which passes ran on
            packed weights decides on packing as well.

    Raises:
        InputError: the model keeps a recurrent or uncuttable cache, or the assistant has another vocabulary.
        NonFiniteError: the weights give NaN or infinity.
    """

    lengths = staticmethod(plan)
    """How many tokens of each candidate are drafted; see `lessen.decoding.policy.plan`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        key_length: int = KEY_LENGTH,
        assistant: Any = None,
        remember: int = 32768,
        pack: bool = True,
        screen: bool = False,
        costs: CostCurve | None = None,
    ) -> None:
        if key_length < 1 or remember < 0:
            raise ConfigError(f"Decoder needs key_length >= 1 and remember >= 0, got {key_length} and {remember}")
        self.model, self.tokenizer, self._key_length = model, tokenizer, key_length
        self._pack, self._screen, self._lock = pack, screen, threading.Lock()
        self.report: DecodeReport | None = None
        """What the call that ended last took."""
        self._prepare(costs)
        self.assistant = Assistant(assistant, model) if assistant is not None else None
        self._memory = TextMemory(remember, key_length) if remember else None

    def _prepare(self, costs: CostCurve | None) -> None:
        """Make the view of the model as it is now, with its engine, packed layers and cost curve."""
        self.engine: Engine = choose_engine(self.model)
        self._head = screened_head(self.engine.view) if self._screen else None
        if self._head is not None:
            setattr(*self._head[:2], self._head[3])
        decided = costs.packed_rows if costs is not None else None
        self.packing = Packing(self.engine.view, decided) if self._pack else None
        self.use_packed_weights(True)
        self._condition = condition(self.model)
        self._counts_padding: bool | None = None
        self.costs = costs or self._measure_costs()
        self._threads = torch.get_num_threads()

    def tune(self) -> None:
        """Decide on packing and measure the cost curve again, as after the machine's load or threads have changed."""
        self._prepare(None)

    def costs_hold(self) -> bool:
        """Return whether a few passes now cost, relative to one another, what the curve says."""
        return costs_hold(self.costs, self._pass_of(), clock=self._clock())

    def counts_padding(self) -> bool:
        """Return whether padding in front of a text changes what `model.generate` says after it; tried once."""
        if self._counts_padding is None:
            self._counts_padding = not patched(self.model) and counts_padding(self.model)
        return self._counts_padding

    def use_packed_weights(self, packed: bool) -> None:
        """Put packed layers into the decoder's view, or the original ones back, without packing again."""
        if self.packing is not None:
            (self.packing.put_in if packed else self.packing.take_out)()

    def close(self) -> None:
        """Free packed weights and 8 bit scores; decoding goes on with the model's own."""
        self.use_packed_weights(False)
        self.packing = None
        if self._head is not None:
            setattr(*self._head[:3])
            self._head = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        generation_config: Any = None,
        streamer: Any = None,
        seed: int | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Any = None,
        **options: Any,
    ) -> Tensor:
        """Return what `model.generate` returns: prompts [batch, length] with the new tokens behind, padded at the end.

        Lengths, processors, prefix functions and stop rules count and see the padding of a row, as in transformers.
        Warns when a row stops because the model's positions are used up.

        Args:
            input_ids: (batch, length) integers, padded on the left where `attention_mask` is 0.
            streamer: a transformers streamer; for one prompt only.
            seed: gives every row its own generator (seed + row); without it torch's global one is drawn from.
            options: fields of transformers' GenerationConfig, such as max_new_tokens, do_sample, temperature,
                repetition_penalty, stop_strings, max_time, num_return_sequences.

        Raises:
            ConfigError: an argument that is unknown or cannot be exact (beam search, static caches ...), by name.
            InputError: padding that is not on the left, an empty prompt, one beyond the context, foreign token ids.
            NonFiniteError: the model gave NaN or infinite logits.
        """
        options |= {
            "logits_processor": logits_processor,
            "stopping_criteria": stopping_criteria,
            "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
        }
        settings = self.settings(seed=seed, generation_config=generation_config, **options)
        copies = settings.config.num_return_sequences or 1
        input_ids = input_ids.repeat_interleave(copies, 0) if isinstance(input_ids, Tensor) else input_ids
        mask = attention_mask.repeat_interleave(copies, 0) if attention_mask is not None else None
        rows = rows_of(input_ids, mask, settings.pad, settings.eos)
        _check_padding([each for _, each in rows])
        if any(each.mask for _, each in rows) and self.counts_padding():
            raise InputError(
                f"{type(self.model).__name__} numbers padding like tokens, so that model.generate says something else "
                "after it; give the texts without padding to complete()"
            )
        if streamer is not None:
            if len(rows) != 1:
                raise ConfigError(f"generate: a streamer follows one sequence, not {len(rows)}")
            streamer.put(input_ids.cpu())
        shown = [each for _, each in rows]
        done, report = self.decode(
            [prompt for prompt, _ in rows], settings, None if streamer is None else _feed(streamer), shown
        )
        if streamer is not None:
            streamer.end()
        if report.cut_by_context:
            warnings.warn(f"{report.context_line()}; model.generate would go on beyond it", stacklevel=2)
        lengths, news = [len(prompt) for prompt, _ in rows], [len(each.tokens) for each in done]
        if switched_by_others(switch_of(self.model, report.context), lengths, news):
            warnings.warn(
                f"rows of unequal length lie on both sides of where {type(self.model).__name__} changes its rotary "
                "frequencies: each is decoded as alone; model.generate would change all rows with the longest",
                stacklevel=2,
            )
        longest = max(news)
        new = [each.tokens + [settings.pad] * (longest - len(each.tokens)) for each in done]
        return torch.cat([input_ids, torch.tensor(new, dtype=input_ids.dtype, device=input_ids.device)], dim=1)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        on_token: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> list[Completion]:
        """Return the completion of every prompt, given as token ids of any lengths; see `generate` for the options.

        Each prompt gives what it gives alone: there is no padding that a length or a rule could see.

        Args:
            on_token: called with (number of the prompt, token) as soon as a token is certain.
        """
        settings = self.settings(**options)
        if (settings.config.num_return_sequences or 1) > 1:
            raise ConfigError("complete: num_return_sequences belongs to generate; give the prompt several times")
        return self.decode(prompts, settings, on_token)[0]

    def settings(self, *, seed: int | None = None, generation_config: Any = None, **options: Any) -> Settings:
        """Return the arguments of a call, checked. Raises ConfigError for one that is unknown or refused."""
        names = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "tokenizer")
        extras = {name: options.pop(name, None) for name in names}
        extras["tokenizer"] = extras["tokenizer"] or self.tokenizer
        return read_settings(self.model, generation_config, seed, extras, options)

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        settings: Settings,
        on_token: Callable[[int, int], None] | None = None,
        shown: Sequence[Shown] | None = None,
    ) -> tuple[list[Completion], DecodeReport]:
        """Decode prompts (token ids) under checked settings; return the completions and what they took.

        Args:
            shown: the rows as `generate` was given them, padding included.
        """
        checked = check_prompts(self.model, prompts)
        engine, packing, costs = self._current()
        limit = settings.config.max_time
        deadline = None if limit is None else time.monotonic() + limit
        requests = []
        for number, prompt in enumerate(checked):
            row = shown[number] if shown is not None else None
            rules = rules_for(self.model, settings, prompt, number, deadline, row)
            requests.append(
                Request(
                    prompt=prompt,
                    rules=rules,
                    copier=Copier(prompt, self._key_length, self._memory, rules.eos),
                    cache=engine.new_cache(len(prompt) + min(rules.max_new_tokens, _RESERVE)),
                    on_token=None if on_token is None else _numbered(on_token, number),
                    shown=None if row is None else row.ids,
                )
            )
        drafting = Drafting(self.assistant) if self.assistant is not None else None
        call = Call(type(self.model).__name__, engine, costs, drafting, requests, self.lengths)
        with screened(all(not one.rules.sample and not one.rules.processors for one in requests)):
            call.run()
        if self._memory is not None:
            for request in requests:
                self._memory.add(request.tokens)
        report = DecodeReport.of(
            [request.counts for request in requests],
            **call.totals(),
            context=context_length(self.model),
            dtype=str(self.model.dtype).removeprefix("torch."),
            packed_bytes=packing.extra_bytes if packing is not None else 0,
            pass_cost=costs.relative(),
        )
        self.report = report
        return [Completion(request.emitted, request.finish or "length") for request in requests], report

    def _current(self) -> tuple[Engine, Packing | None, CostCurve]:
        """Return engine, packing and costs that fit the model as it is now, prepared again where it has changed."""
        with self._lock:
            if condition(self.model) != self._condition:
                self._prepare(None)
            elif torch.get_num_threads() != self._threads:
                self.costs, self._threads = self._measure_costs(), torch.get_num_threads()
            return self.engine, self.packing, self.costs

    def _pass_of(self) -> Callable[[int], None]:
        """Return a function that runs one pass with so many new tokens behind a short context."""
        engine, cache = self.engine, self.engine.new_cache()
        context = context_length(self.model)
        before = _CALIBRATION_CONTEXT if context is None else min(_CALIBRATION_CONTEXT, context // 2)
        opening = list(getattr(engine, "opening", ()))  # what every text of a model with a prefix cache starts with
        before = max(before, len(opening))
        if before < 1:
            raise InputError(f"{type(self.model).__name__} has a context of {context} tokens; at least 2 are needed")
        size = self.model.config.get_text_config().vocab_size
        tokens = opening + [(11 * step + 3) % size for step in range(before + SIZES[-1])]
        engine.run([(cache, tokens[:before])])

        def run(rows: int) -> None:
            engine.run([(cache, tokens[:rows])])[0, 0].item()  # waits for another device to finish
            engine.cut(cache, before)

        return run

    def _measure_costs(self) -> CostCurve:
        context = context_length(self.model)
        room = SIZES[-1] if context is None else max(1, context - min(_CALIBRATION_CONTEXT, context // 2))
        packed = self.packing.rows if self.packing is not None else (0, 0)
        return measure_costs(
            self._pass_of(), [rows for rows in SIZES if rows <= room], clock=self._clock(), packed_rows=packed
        )

    def _clock(self) -> Callable[[], float]:
        """Return processor time where the model runs on it, else wall time."""
        return time.process_time if self.model.device.type == "cpu" else time.perf_counter


def _check_padding(rows: Sequence[Shown]) -> None:
    """Refuse padding behind or inside a text, after which `generate` goes on from the padding. Raises InputError."""
    for number, row in enumerate(rows):
        if row.mask is not None and row.mask != sorted(row.mask):
            raise InputError(
                f"row {number} has padding behind or inside its text; pad on the left (padding_side='left'), or give "
                "the texts without padding to complete()"
            )


def _feed(streamer: Any) -> Callable[[int, int], None]:
    return lambda _number, token: streamer.put(torch.tensor([token]))


def _numbered(on_token: Callable[[int, int], None], number: int) -> Callable[[int], None]:
    return lambda token: on_token(number, token)
