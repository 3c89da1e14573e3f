"""The decoder: one loop for one or many sequences, copied or assisted drafts, exact output.

look up    ->  plan          ->  one pass             ->  keep what the model     ->  cut each cache
a copy         draft lengths     over all new tokens      would have chosen           to what was kept
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lessen.decoding.assistant import Assistant
from lessen.decoding.copying import TextMemory
from lessen.decoding.cost import SIZES, CostCurve, measure_costs
from lessen.decoding.engine import choose_engine
from lessen.decoding.packing import Packing
from lessen.decoding.policy import KEY_LENGTH, Copier, Offer, plan
from lessen.decoding.report import DecodeReport
from lessen.decoding.request import Request
from lessen.decoding.settings import Settings, check_prompts, context_length, read_settings, rows_of, rules_for
from lessen.errors import ConfigError, InputError, NonFiniteError

_PREFILL_ROWS = 4096
_CALIBRATION_CONTEXT = 128


@dataclass(frozen=True)
class Completion:
    """The tokens that follow one prompt and why they end: eos, stop string, criterion, time or length."""

    tokens: list[int]
    finish: str


class Decoder:
    """Decodes with a Hugging Face causal language model, faster where text repeats, with the output of plain decoding.

    In float32 the greedy output is that of `model.generate`, token for token, up to near ties within float rounding;
    sampled output follows the same law, and for one sequence is the same draw under the same seed. Earlier texts are
    remembered as copy sources for later calls: they change the speed, never the output.

    Sources: CopySpec (arXiv 2502.08923) for the copy table, EMS-SD (arXiv 2405.07542) for unpadded batches. Different
    from both: the draft length follows the measured cost of a pass and the observed chance of acceptance.

    Args:
        model: a decoder-only language model with an attention cache.
        tokenizer: needed for stop strings only.
        key_length: tokens that must agree before anything is copied.
        assistant: a smaller model with the same vocabulary, used where nothing can be copied and while it pays.
        remember: tokens of earlier texts to keep as copy sources; 0 keeps none.
        pack: hold a packed copy of float32 CPU linear weights where a trial shows that products get quicker
            (`packed_bytes` of extra memory); `close` puts the original layers back. Until then weights must not change.
        costs: the cost curve, if known; measured in a few seconds otherwise.

    Raises:
        InputError: the model keeps a recurrent or uncuttable cache, or the assistant has another vocabulary.
        NonFiniteError: the weights give NaN or infinity.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        key_length: int = KEY_LENGTH,
        assistant: Any = None,
        remember: int = 32768,
        pack: bool = True,
        costs: CostCurve | None = None,
    ) -> None:
        if key_length < 1 or remember < 0:
            raise ConfigError(f"Decoder needs key_length >= 1 and remember >= 0, got {key_length} and {remember}")
        self.model, self.tokenizer, self._key_length = model, tokenizer, key_length
        self.engine = choose_engine(model)
        self.packing = Packing(model) if pack else None
        self.use_packed_weights(True)
        self.costs = costs or self._measure_costs()
        self.assistant = Assistant(assistant, model) if assistant is not None else None
        self._memory = TextMemory(remember, key_length) if remember else None
        self.report: DecodeReport | None = None
        """What the latest call took."""

    def use_packed_weights(self, packed: bool) -> None:
        """Put packed layers into the model, or the original ones back, without packing again."""
        if self.packing is not None:
            (self.packing.put_in if packed else self.packing.take_out)()

    def close(self) -> None:
        """Put the original layers back into the model and free the packed weights."""
        self.use_packed_weights(False)
        self.packing = None

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
        """Return what `model.generate` returns: prompts (batch, length) with the new tokens behind, padded at the end.

        Args:
            input_ids: (batch, length) integers, padded on either side where `attention_mask` is 0.
            streamer: a transformers streamer; for one prompt only.
            seed: gives every row its own generator (seed + row); without it torch's global one is drawn from.
            options: fields of transformers' GenerationConfig, such as max_new_tokens, do_sample, temperature,
                repetition_penalty, stop_strings, max_time, num_return_sequences.

        Raises:
            ConfigError: an argument that is unknown or cannot be exact (beam search, static caches ...), by name.
            InputError: an empty prompt, one longer than the context, or foreign token ids.
            NonFiniteError: the model gave NaN or infinite logits.
        """
        extras = {
            "logits_processor": logits_processor,
            "stopping_criteria": stopping_criteria,
            "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
            "tokenizer": options.pop("tokenizer", None) or self.tokenizer,
        }
        settings = read_settings(self.model, generation_config, seed, extras, options)
        copies = settings.config.num_return_sequences or 1
        input_ids = input_ids.repeat_interleave(copies, 0) if isinstance(input_ids, Tensor) else input_ids
        mask = attention_mask.repeat_interleave(copies, 0) if attention_mask is not None else None
        prompts = rows_of(input_ids, mask, settings.pad, settings.eos)
        if streamer is not None:
            if len(prompts) != 1:
                raise ConfigError(f"generate: a streamer follows one sequence, not {len(prompts)}")
            streamer.put(input_ids.cpu())
        done = self._complete(prompts, settings, None if streamer is None else _feed(streamer))
        if streamer is not None:
            streamer.end()
        longest = max(len(each.tokens) for each in done)
        new = [each.tokens + [settings.pad] * (longest - len(each.tokens)) for each in done]
        return torch.cat([input_ids, torch.tensor(new, dtype=input_ids.dtype, device=input_ids.device)], dim=1)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int | None = None,
        on_token: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> list[Completion]:
        """Return the completion of every prompt, given as token ids of any lengths; see `generate` for the options.

        Args:
            on_token: called with (number of the prompt, token) as soon as a token is certain.
        """
        names = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")
        extras = {name: options.pop(name, None) for name in names} | {"tokenizer": self.tokenizer}
        settings = read_settings(self.model, options.pop("generation_config", None), seed, extras, options)
        return self._complete(prompts, settings, on_token)

    def _complete(
        self, prompts: Sequence[Sequence[int]], settings: Settings, on_token: Callable[[int, int], None] | None
    ) -> list[Completion]:
        checked = check_prompts(self.model, prompts)
        start = time.perf_counter()
        limit = settings.config.max_time
        deadline = None if limit is None else time.monotonic() + limit
        requests = [
            self._request(prompt, settings, number, deadline, on_token) for number, prompt in enumerate(checked)
        ]
        self._prefill(requests)
        prefill = time.perf_counter() - start
        passes = self._rounds(requests)
        seconds = time.perf_counter() - start
        if self._memory is not None:
            for request in requests:
                self._memory.add(request.tokens)
        self.report = self._report(requests, passes, seconds, prefill)
        return [Completion(request.emitted, request.finish or "length") for request in requests]

    def _request(
        self,
        prompt: list[int],
        settings: Settings,
        number: int,
        deadline: float | None,
        on_token: Callable[[int, int], None] | None,
    ) -> Request:
        rules = rules_for(self.model, settings, prompt, number, deadline)
        return Request(
            prompt=prompt,
            rules=rules,
            copier=Copier(prompt, self._key_length, self._memory, rules.eos),
            cache=self.engine.new_cache(len(prompt) + rules.max_new_tokens),
            on_token=None if on_token is None else lambda token: on_token(number, token),
        )

    def _prefill(self, requests: Sequence[Request]) -> None:
        """Run the prompts, several in a pass while they fit, and choose each first token."""
        group: list[Request] = []
        for number, request in enumerate(requests):
            group.append(request)
            following = requests[number + 1].prompt if number + 1 < len(requests) else None
            if following is None or sum(len(each.prompt) for each in group) + len(following) > _PREFILL_ROWS:
                logits = self.engine.run([(each.cache, each.prompt) for each in group], last_only=True)
                self._take(group, [[] for _ in group], logits)
                group = []

    def _rounds(self, requests: Sequence[Request]) -> int:
        """Draft, verify and cut until every sequence has ended; return the number of passes."""
        passes = 0
        active = [request for request in requests if request.finish is None]
        while active:
            copied, drafts = self._drafts(active)
            logits = self.engine.run(
                [(request.cache, [request.tokens[-1], *draft]) for request, draft in zip(active, drafts, strict=True)]
            )
            taken = self._take(active, drafts, logits)
            for request, draft, tokens, from_text in zip(active, drafts, taken, copied, strict=True):
                self._count(request, draft, tokens, from_text)
                self.engine.cut(request.cache, len(request.tokens) - 1)
            active = [request for request in active if request.finish is None]
            passes += 1
        return passes

    def _drafts(self, active: Sequence[Request]) -> tuple[list[bool], list[list[int]]]:
        """Return for each sequence whether its draft is copied, and the draft."""
        offers = [request.copier.offer(request.left - 1) for request in active]
        drafts = [offer.tokens[:length] for offer, length in zip(offers, self._lengths(offers), strict=True)]
        copied = [bool(draft) for draft in drafts]
        idle = [number for number, draft in enumerate(drafts) if not draft]
        if self.assistant is not None and idle:
            found = self.assistant.draft([active[number] for number in idle], self.costs)
            for number, draft in zip(idle, found, strict=True):
                drafts[number] = draft
        return copied, drafts

    def _lengths(self, offers: Sequence[Offer]) -> list[int]:
        if self.engine.batched:
            return plan(offers, self.costs)
        return [plan([offer], self.costs)[0] for offer in offers]  # each sequence has its own pass

    def _take(self, requests: Sequence[Request], drafts: Sequence[list[int]], logits: Tensor) -> list[list[int]]:
        best = logits.argmax(-1)
        if not logits.gather(1, best[:, None]).isfinite().all():
            raise NonFiniteError(
                f"{type(self.model).__name__} gave NaN or infinite logits while decoding; check its weights and dtype"
            )
        ids, start, taken = best.tolist(), 0, []
        for request, draft in zip(requests, drafts, strict=True):
            rows = slice(start, start + 1 + len(draft))
            taken.append(request.take(logits[rows], ids[rows], draft))
            start = rows.stop
        return taken

    def _count(self, request: Request, draft: list[int], emitted: list[int], copied: bool) -> None:
        counts = request.counts
        held = sum(1 for token, wanted in zip(emitted, draft, strict=False) if token == wanted)
        counts.rows, counts.drafted = counts.rows + 1 + len(draft), counts.drafted + len(draft)
        counts.accepted += held
        if self.assistant is None:
            return
        self.assistant.observe(request, [] if copied else draft, emitted)
        if not copied:
            counts.assistant_drafted, counts.assistant_accepted = (
                counts.assistant_drafted + len(draft),
                counts.assistant_accepted + held,
            )
        if request.finish is not None:
            self.assistant.forget(request)

    def _report(self, requests: Sequence[Request], passes: int, seconds: float, prefill: float) -> DecodeReport:
        return DecodeReport.of(
            [request.counts for request in requests],
            prompts=len(requests),
            prompt_tokens=sum(len(request.prompt) for request in requests),
            new_tokens=sum(len(request.emitted) for request in requests),
            passes=passes,
            seconds=seconds,
            prefill_seconds=prefill,
            unpadded=self.engine.batched,
            dtype=str(self.model.dtype).removeprefix("torch."),
            packed_bytes=self.packing.extra_bytes if self.packing is not None else 0,
            pass_cost=self.costs.relative(),
        )

    def _measure_costs(self) -> CostCurve:
        cache = self.engine.new_cache()
        context = context_length(self.model)
        before = _CALIBRATION_CONTEXT if context is None else min(_CALIBRATION_CONTEXT, context // 2)
        if before < 1:
            raise InputError(f"{type(self.model).__name__} has a context of {context} tokens; at least 2 are needed")
        size = self.model.config.get_text_config().vocab_size
        tokens = [(11 * step + 3) % size for step in range(before + 64)]
        self.engine.run([(cache, tokens[:before])])

        def run(rows: int) -> None:
            self.engine.run([(cache, tokens[:rows])])[0, 0].item()  # waits for another device to finish
            self.engine.cut(cache, before)

        room = 64 if context is None else max(1, context - before)
        clock = time.process_time if self.model.device.type == "cpu" else time.perf_counter
        return measure_costs(run, [rows for rows in SIZES if rows <= room], clock=clock)


def _feed(streamer: Any) -> Callable[[int, int], None]:
    return lambda _number, token: streamer.put(torch.tensor([token]))
