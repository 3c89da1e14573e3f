"""Plain decoding of the same prompts, timed in the same process, so that a report can say what drafting gained."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from lessen.decoding.decoder import Completion, Decoder
from lessen.decoding.report import Comparison
from lessen.errors import ConfigError


def plain_tokens(decoder: Decoder, prompts: Sequence[Sequence[int]], **options: Any) -> tuple[list[list[int]], float]:
    """Return what `model.generate` emits for the prompts, left-padded as one batch, and its seconds.

    The model runs with its original layers, as it would without lessen.
    """
    model = decoder.model
    longest = max(len(prompt) for prompt in prompts)
    eos = model.generation_config.eos_token_id
    ends = {eos} if isinstance(eos, int) else set(eos or ())
    pad = model.generation_config.pad_token_id
    pad = pad if pad is not None else min(ends, default=0)
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    decoder.use_packed_weights(False)
    try:
        start = time.perf_counter()
        out = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), pad_token_id=pad, **options
        )
        seconds = time.perf_counter() - start
    finally:
        decoder.use_packed_weights(True)
    return [_until_end(row[longest:].tolist(), ends) for row in out], seconds


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens


def compare(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    on_token: Callable[[int, int], None] | None = None,
    **options: Any,
) -> list[Completion]:
    """Decode greedily with drafts and plainly; `decoder.report` then carries the comparison.

    Raises:
        ConfigError: sampling was asked for; two draws cannot be compared token for token.
    """
    if options.get("do_sample"):
        raise ConfigError("a comparison with plain decoding needs greedy decoding; set temperature to 0")
    done = decoder.complete(prompts, on_token=on_token, **options)
    report = decoder.report
    if report is None:
        raise RuntimeError("the decoder made no report")
    plain, seconds = plain_tokens(decoder, prompts, tokenizer=decoder.tokenizer, **options)
    pairs = [(each.tokens, other) for each, other in zip(done, plain, strict=True)]
    agreed = sum(_agreement(own, other) for own, other in pairs)
    decoder.report = replace(
        report,
        comparison=Comparison(
            plain_seconds=seconds,
            seconds=report.seconds,
            identical=sum(own == other for own, other in pairs),
            prompts=len(pairs),
            agreement=agreed / max(1, sum(max(len(own), len(other)) for own, other in pairs)),
        ),
    )
    return done


def _agreement(own: list[int], other: list[int]) -> int:
    count = 0
    for left, right in zip(own, other, strict=False):
        if left != right:
            break
        count += 1
    return count
