"""Reading the arguments of `generate` the way transformers does, and refusing by name what cannot be exact."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lessen.architectures.context import context_of
from lessen.architectures.loading import hugging_face
from lessen.decoding.request import Rules
from lessen.errors import ConfigError, InputError

_REFUSED_WHEN_SET = {
    "num_beams": (1, "beam search keeps several hypotheses; use num_beams=1"),
    "num_beam_groups": (1, "beam search keeps several hypotheses; use num_beam_groups=1"),
    "penalty_alpha": (0.0, "contrastive search scores hidden states; leave penalty_alpha out"),
    "dola_layers": (None, "layer contrast changes the logits; leave dola_layers out"),
    "guidance_scale": (1.0, "classifier-free guidance runs a second pass a token; leave guidance_scale out"),
    "return_dict_in_generate": (False, "only token ids are returned; leave return_dict_in_generate out"),
    "output_scores": (False, "scores are not kept; leave output_scores out"),
    "output_logits": (False, "logits are not kept; leave output_logits out"),
    "output_attentions": (False, "attentions are not kept; leave output_attentions out"),
    "output_hidden_states": (False, "hidden states are not kept; leave output_hidden_states out"),
    "prompt_lookup_num_tokens": (None, "the decoder copies by itself; leave prompt_lookup_num_tokens out"),
    "assistant_early_exit": (None, "give an assistant to the Decoder instead of assistant_early_exit"),
    "token_healing": (False, "token healing rewrites the prompt; leave token_healing out"),
    "use_cache": (True, "decoding needs the cache; leave use_cache out"),
}
_CACHES = (None, "dynamic", "dynamic_full")


@dataclass(frozen=True)
class Settings:
    """The arguments of one call, checked."""

    config: Any
    default_lengths: tuple[bool, bool]
    """Whether neither call nor model says a greatest and a least length; transformers then takes its own."""
    eos: frozenset[int]
    pad: int
    seed: int | None
    extras: dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """A row as logits processors and stop rules see it: token ids with padding, and 1 where they are no padding."""

    ids: list[int]
    mask: list[int] | None = None


def read_settings(
    model: Any, generation_config: Any, seed: int | None, extras: dict[str, Any], options: dict[str, Any]
) -> Settings:
    """Merge generation arguments as `model.generate` would.

    Args:
        extras: `logits_processor`, `stopping_criteria`, `prefix_allowed_tokens_fn`, `tokenizer`.
        options: any field of transformers' GenerationConfig.

    Raises:
        ConfigError: an unknown argument, or one that this decoder refuses; the message names it.
    """
    for name in (
        "past_key_values",
        "cache",
        "inputs_embeds",
        "assistant_model",
        "custom_generate",
        "negative_prompt_ids",
    ):
        if options.get(name) is not None:
            raise ConfigError(
                f"generate: {name} is not accepted; pass token ids only (an assistant goes to the Decoder)"
            )
    try:
        config, unknown = model._prepare_generation_config(generation_config, **options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"generate: {error}") from error
    _refuse(config, options, generation_config)
    if config.cache_implementation not in _CACHES:
        raise ConfigError(
            f"generate: cache_implementation={config.cache_implementation!r} is refused: "
            "such a cache cannot be cut; leave it out"
        )
    unknown = {name: value for name, value in unknown.items() if value is not None}
    if unknown:
        raise ConfigError(f"generate does not know the argument {sorted(unknown)[0]!r}")
    model._prepare_special_tokens(config, True, device="cpu")
    eos = frozenset() if config._eos_token_tensor is None else frozenset(config._eos_token_tensor.tolist())
    pad = config._pad_token_tensor
    pad_id = int(pad) if pad is not None else min(eos, default=0)
    _check_lengths(config)
    sources = (options, generation_config, model.generation_config)
    defaults = tuple(all(_field(each, name) is None for each in sources) for name in ("max_length", "min_length"))
    return Settings(config, (defaults[0], defaults[1]), eos, pad_id, seed, extras)


def _refuse(config: Any, options: dict[str, Any], generation_config: Any) -> None:
    for name, (allowed, why) in _REFUSED_WHEN_SET.items():
        value = getattr(config, name, None)
        if name == "use_cache" and all(_field(each, name) is None for each in (options, generation_config)):
            continue  # a default of the model; the cache changes the speed, not the output
        if value is not None and value != allowed:
            raise ConfigError(f"generate: {name}={value!r} is refused: {why}")


def _field(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, dict) else getattr(source, name, None)


def _check_lengths(config: Any) -> None:
    asked = config.max_new_tokens
    if asked is not None and asked < 1:
        raise ConfigError(f"generate: max_new_tokens={asked} must be at least 1")


def rules_for(
    model: Any,
    settings: Settings,
    prompt: Sequence[int],
    number: int,
    deadline: float | None,
    shown: Shown | None = None,
) -> Rules:
    """Return the rules of sequence `number`: its own processors, since they may depend on the prompt's length.

    Args:
        shown: the row as `generate` was given it; without it the row is the prompt alone.

    Raises:
        ConfigError: an argument that transformers refuses, or no room for a token.
    """
    try:
        return _rules(model, settings, prompt, number, deadline, shown or Shown(list(prompt)))
    except (ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"generate: {reason}") from error


def _rules(
    model: Any, settings: Settings, prompt: Sequence[int], number: int, deadline: float | None, shown: Shown
) -> Rules:
    extras = settings.extras
    config, ids = _filled(model, settings, shown), torch.tensor([shown.ids])
    row = number // (settings.config.num_return_sequences or 1)
    mask = None if shown.mask is None else torch.tensor([shown.mask])
    processors = model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=len(shown.ids),
        encoder_input_ids=ids,
        prefix_allowed_tokens_fn=_for_row(extras.get("prefix_allowed_tokens_fn"), row),
        logits_processor=extras.get("logits_processor"),
        device="cpu",
        model_kwargs={"attention_mask": mask},
    )
    generator = None
    if settings.seed is not None:
        generator = torch.Generator().manual_seed(settings.seed + number)
    stops = _stops(model, settings, config)
    asked, context = stops.limit - len(shown.ids), context_length(model)
    if asked < 1:
        raise ConfigError(f"generate: max_length={stops.limit} leaves no room after {len(shown.ids)} prompt tokens")
    room = asked if context is None else min(asked, context - len(prompt))
    return Rules(
        max_new_tokens=room,
        eos=stops.eos,
        sample=bool(config.do_sample),
        processors=list(processors),
        stop_strings=stops.strings,
        criteria=stops.others,
        deadline=deadline,
        clock=time.monotonic,
        generator=generator,
        end="length" if room == asked else "context",
    )


def _filled(model: Any, settings: Settings, shown: Shown) -> Any:
    """Return the configuration of one row with the fields that transformers derives from its length."""
    config = copy.copy(settings.config)
    config.num_return_sequences = 1
    longest, least = settings.default_lengths
    longest, least = longest or config.max_new_tokens is not None, least or config.min_new_tokens is not None
    return model._prepare_generated_length(
        generation_config=config,
        has_default_max_length=longest,
        has_default_min_length=least,
        model_input_name="input_ids",
        input_ids_length=len(shown.ids),
        inputs_tensor=torch.tensor([shown.ids]),
    )


@dataclass(frozen=True)
class _Stops:
    """What ends a row: its greatest length (padding included), end tokens, stop strings, the caller's own criteria."""

    limit: int
    eos: frozenset[int]
    strings: Any
    others: list[Any]


def _stops(model: Any, settings: Settings, config: Any) -> _Stops:
    """Merge the caller's criteria with those of the configuration; of one kind the caller's count, as in `generate`."""
    transformers, extras = hugging_face(), settings.extras
    if config.stop_strings is not None and extras.get("tokenizer") is None:
        raise ConfigError("generate: stop_strings needs the tokenizer; give it to the Decoder")
    config = copy.copy(config)
    config.max_time = None  # the deadline is one for the whole call
    given = list(extras.get("stopping_criteria") or ())
    merged = model._get_stopping_criteria(config, transformers.StoppingCriteriaList(given), extras.get("tokenizer"))
    kinds = transformers.generation.stopping_criteria
    limit, eos, strings, others = 1 << 40, frozenset[int](), None, []
    for criterion in merged:
        if isinstance(criterion, kinds.MaxLengthCriteria):
            limit = min(limit, int(criterion.max_length))
        elif isinstance(criterion, kinds.EosTokenCriteria):
            eos |= frozenset(criterion.eos_token_id.flatten().tolist())
        elif isinstance(criterion, kinds.StopStringCriteria) and strings is None:
            strings = criterion
        else:
            others.append(criterion)
    return _Stops(limit, eos, strings, others)


def _for_row(function: Any, row: int) -> Any:
    return None if function is None else lambda _row, ids: function(row, ids)


def context_length(model: Any) -> int | None:
    """Return the positions a model was made for, or None where its configuration does not say."""
    return context_of(model.config)


def check_prompts(model: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the prompts as lists of token ids. Raises InputError for an empty, too long or foreign prompt."""
    if not prompts:
        raise InputError("there is no prompt to continue")
    size, context = model.config.get_text_config().vocab_size, context_length(model)
    checked = []
    for number, prompt in enumerate(prompts):
        ids = [int(token) for token in prompt]
        if not ids:
            raise InputError(f"prompt {number} is empty; give at least one token, such as the start-of-text token")
        if context is not None and len(ids) >= context:
            raise InputError(f"prompt {number} has {len(ids)} tokens; the model's context is {context}, shorten it")
        if min(ids) < 0 or max(ids) >= size:
            wrong = next(token for token in ids if not 0 <= token < size)
            raise InputError(f"prompt {number} holds the token {wrong}, outside the model's vocabulary of {size}")
        checked.append(ids)
    return checked


def rows_of(input_ids: Any, attention_mask: Any, pad: int, eos: frozenset[int]) -> list[tuple[list[int], Shown]]:
    """Return, for each row of a (batch, length) tensor, its token ids without padding, and the row as it is shown.

    Every pad token counts as padding without a mask, unless it also ends sequences, as in transformers.

    Raises:
        InputError: no tensor (batch, length) of integers, or a mask of another shape.
    """
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2:
        raise InputError("input_ids must be a tensor (batch, length); for lists of ids call complete()")
    if attention_mask is None:
        mask = torch.ones_like(input_ids, dtype=torch.bool)
        if pad not in eos:
            mask = input_ids != pad
    else:
        if attention_mask.shape != input_ids.shape:
            raise InputError(
                f"attention_mask {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)} differ"
            )
        mask = attention_mask.bool()
    whole = bool(mask.all())
    return [
        (row[keep].tolist(), Shown(row.tolist(), None if whole else keep.long().tolist()))
        for row, keep in zip(input_ids, mask, strict=True)
    ]
