"""Reading the arguments of `generate` the way transformers does, and refusing by name what cannot be exact."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
_DEFAULT_NEW_TOKENS = 20
_CACHES = (None, "dynamic", "dynamic_full")


@dataclass(frozen=True)
class Settings:
    """The arguments of one call, checked."""

    config: Any
    max_new_tokens: int | None
    max_length: int | None
    eos: frozenset[int]
    pad: int
    seed: int | None
    extras: dict[str, Any]


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
    for name in ("past_key_values", "inputs_embeds", "assistant_model", "custom_generate", "negative_prompt_ids"):
        if options.get(name) is not None:
            raise ConfigError(
                f"generate: {name} is not accepted; pass token ids only (an assistant goes to the Decoder)"
            )
    try:
        config, unknown = model._prepare_generation_config(generation_config, **options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"generate: {error}") from error
    for name, (allowed, why) in _REFUSED_WHEN_SET.items():
        value = getattr(config, name, None)
        if value is not None and value != allowed:
            raise ConfigError(f"generate: {name}={value!r} is refused: {why}")
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
    chosen = (options, generation_config, model.generation_config)
    total = next((found for each in chosen if (found := _field(each, "max_length")) is not None), None)
    return Settings(config, _asked_length(config), total, eos, pad_id, seed, extras)


def _field(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, dict) else getattr(source, name, None)


def _asked_length(config: Any) -> int | None:
    asked = config.max_new_tokens
    if asked is not None and asked < 1:
        raise ConfigError(f"generate: max_new_tokens={asked} must be at least 1")
    return asked if asked is None else int(asked)


def rules_for(model: Any, settings: Settings, prompt: Sequence[int], number: int, deadline: float | None) -> Rules:
    """Return the rules of sequence `number`: its own processors, since they may depend on the prompt's length."""
    config, extras = settings.config, settings.extras
    processors = model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=len(prompt),
        encoder_input_ids=torch.tensor([list(prompt)]),
        prefix_allowed_tokens_fn=_for_row(extras.get("prefix_allowed_tokens_fn"), number),
        logits_processor=extras.get("logits_processor"),
        device="cpu",
        model_kwargs={},
    )
    generator = None
    if settings.seed is not None:
        generator = torch.Generator().manual_seed(settings.seed + number)
    return Rules(
        max_new_tokens=_room(model, settings, prompt),
        eos=settings.eos,
        sample=bool(config.do_sample),
        processors=list(processors),
        stop_strings=_stop_strings(config, extras.get("tokenizer")),
        criteria=list(extras.get("stopping_criteria") or ()),
        deadline=deadline,
        clock=time.monotonic,
        generator=generator,
    )


def _for_row(function: Any, number: int) -> Any:
    return None if function is None else lambda _row, ids: function(number, ids)


def _stop_strings(config: Any, tokenizer: Any) -> Any:
    if config.stop_strings is None:
        return None
    if tokenizer is None:
        raise ConfigError("generate: stop_strings needs the tokenizer; give it to the Decoder")
    return hugging_face().StopStringCriteria(stop_strings=config.stop_strings, tokenizer=tokenizer)


def _room(model: Any, settings: Settings, prompt: Sequence[int]) -> int:
    asked = settings.max_new_tokens
    if asked is None:
        asked = _DEFAULT_NEW_TOKENS if settings.max_length is None else settings.max_length - len(prompt)
        if asked < 1:
            raise ConfigError(
                f"generate: max_length={settings.max_length} leaves no room after {len(prompt)} prompt tokens"
            )
    context = context_length(model)
    return asked if context is None else min(asked, context - len(prompt))


def context_length(model: Any) -> int | None:
    """Return the positions a model was made for, or None where its configuration does not say."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


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


def rows_of(input_ids: Any, attention_mask: Any, pad: int, eos: frozenset[int]) -> list[list[int]]:
    """Return the unpadded token ids of each row of a (batch, length) tensor.

    Without a mask, leading pad tokens are dropped unless the pad token also ends sequences, as transformers does.
    """
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2:
        raise InputError("input_ids must be a tensor (batch, length); for lists of ids call complete()")
    if attention_mask is None:
        mask = torch.ones_like(input_ids, dtype=torch.bool)
        if pad not in eos:
            mask = (input_ids != pad).cumsum(1) > 0
    else:
        if attention_mask.shape != input_ids.shape:
            raise InputError(
                f"attention_mask {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)} differ"
            )
        mask = attention_mask.bool()
    return [row[keep].tolist() for row, keep in zip(input_ids, mask, strict=True)]
