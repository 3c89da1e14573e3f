"""Plain decoding of the same prompts, timed in the same process, so that a report can say what drafting gained."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from lessen.decoding.decoder import Completion, Decoder
from lessen.decoding.kv_forward import patched
from lessen.decoding.report import Comparison
from lessen.decoding.request import Request, Rules
from lessen.decoding.settings import Settings, check_prompts, context_length, rules_for
from lessen.decoding.switching import switch_of
from lessen.errors import ConfigError


def compare(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    on_token: Callable[[int, int], None] | None = None,
    **options: Any,
) -> list[Completion]:
    """Decode greedily with drafts and plainly; `decoder.report` then carries the comparison.

    Both runs have the caller's options, and both texts end by the caller's own stop rules. Plain decoding runs the
    prompts as one left-padded batch where padding cannot change its output, else one after the other.

    Raises:
        ConfigError: sampling or a time limit was asked for, in the call or in the model's generation configuration;
            two draws, or texts cut by the clock, cannot be compared token for token.
    """
    settings = decoder.settings(**options)
    if settings.config.do_sample:
        source = "the call" if options.get("do_sample") else "the model's generation configuration"
        raise ConfigError(
            f"a comparison with plain decoding needs greedy decoding ({source} samples); set do_sample=False"
        )
    if settings.config.max_time is not None:
        raise ConfigError("a comparison with plain decoding needs a limit of tokens; leave max_time out")
    done, report = decoder.decode(prompts, settings, on_token)
    plain, seconds, together = _plainly(decoder, prompts, settings, options)
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
            together=together,
        ),
    )
    return done


def plain_tokens(decoder: Decoder, prompts: Sequence[Sequence[int]], **options: Any) -> tuple[list[list[int]], float]:
    """Return what `model.generate` emits for each prompt under the options, and its seconds."""
    tokens, seconds, _ = _plainly(decoder, prompts, decoder.settings(**options), options)
    return tokens, seconds


def _plainly(
    decoder: Decoder, prompts: Sequence[Sequence[int]], settings: Settings, options: dict[str, Any]
) -> tuple[list[list[int]], float, bool]:
    """Return the tokens, the seconds, and whether the prompts ran as one batch."""
    checked = check_prompts(decoder.model, prompts)
    rules = [rules_for(decoder.model, settings, prompt, number, None) for number, prompt in enumerate(checked)]
    even = len({len(prompt) for prompt in checked}) == 1
    alone = patched(decoder.model) or switch_of(decoder.model, context_length(decoder.model)) is not None
    together = even or not (alone or any(_sees_padding(each, settings) for each in rules) or decoder.counts_padding())
    groups = [list(range(len(checked)))] if together else [[number] for number in range(len(checked))]
    tokens: list[list[int]] = []
    seconds = 0.0
    for group in groups:
        rows, spent = _batch(
            decoder, [checked[number] for number in group], group[0], rules[group[0]], settings, options
        )
        tokens += [_ended(rules[number], checked[number], row) for number, row in zip(group, rows, strict=True)]
        seconds += spent
    return tokens, seconds, together


def _sees_padding(rules: Rules, settings: Settings) -> bool:
    """Return whether a batch padded to the longest prompt could end or choose otherwise than each prompt alone."""
    return bool(rules.processors or rules.criteria or settings.config.max_new_tokens is None or rules.end == "context")


def _batch(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    first: int,
    rules: Rules,
    settings: Settings,
    options: dict[str, Any],
) -> tuple[list[list[int]], float]:
    model, longest = decoder.model, max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[settings.pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    given = {name: value for name, value in options.items() if name != "seed"} | {"pad_token_id": settings.pad}
    given["tokenizer"] = settings.extras["tokenizer"]
    if rules.end == "context":
        given["max_new_tokens"] = rules.max_new_tokens
    prefix = given.get("prefix_allowed_tokens_fn")
    if prefix is not None:
        given["prefix_allowed_tokens_fn"] = lambda row, seen: prefix(first + row, seen)
    start = time.perf_counter()
    out = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), **given)
    seconds = time.perf_counter() - start
    return [row[longest:].tolist() for row in out], seconds


def _ended(rules: Rules, prompt: list[int], tokens: list[int]) -> list[int]:
    """Return the tokens up to where the caller's rules end them; what follows in a batch is padding.

    The caller's own criteria have ended the row already, and are not called again.
    """
    request = Request(prompt=prompt, rules=replace(rules, criteria=(), processors=()), copier=None, cache=None)
    for token in tokens:
        request.append(token)
        if request.finish is not None:
            break
    return request.emitted


def _agreement(own: list[int], other: list[int]) -> int:
    count = 0
    for left, right in zip(own, other, strict=False):
        if left != right:
            break
        count += 1
    return count
