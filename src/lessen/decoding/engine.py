"""Choosing how a model runs: unpadded passes where its attention can be exchanged, one sequence at a time elsewhere.

Which of the two is right is found out by trying: a mixed pass is compared with the model's ordinary forward. A model
whose cache cannot be cut is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lessen.architectures.loading import hugging_face
from lessen.decoding.ragged import RaggedEngine
from lessen.errors import InputError, NonFiniteError

_CUTTABLE = {"full_attention", "sliding_attention"}


class Engine(Protocol):
    """What the decoder needs of a model."""

    batched: bool

    def new_cache(self, reserve: int = 0) -> Any:
        """Return the empty cache of one sequence."""

    def cut(self, cache: Any, length: int) -> None:
        """Forget all but the first `length` tokens of a cache."""

    def run(self, work: Sequence[tuple[Any, Sequence[int]]], last_only: bool = False) -> Tensor:
        """Add new tokens to the caches; return logits (rows, vocabulary), or one row a sequence."""


class SingleEngine:
    """Runs each sequence by itself through the model's own attention and dynamic cache.

    For models that build their attention bias themselves (Bloom, MPT, Gemma 2 ...): exact, without the gain of batches.
    """

    batched = False

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache_class = hugging_face().DynamicCache

    def new_cache(self, reserve: int = 0) -> Any:  # noqa: ARG002 - the library's cache grows by itself
        """Return an empty dynamic cache of the model's own kind."""
        return self._cache_class(config=self._model.config)

    def cut(self, cache: Any, length: int) -> None:
        """Crop the cache to `length` tokens."""
        surplus = cache.get_seq_length() - length
        if surplus > 0:
            cache.crop(-surplus)

    @torch.inference_mode()
    def run(self, work: Sequence[tuple[Any, Sequence[int]]], last_only: bool = False) -> Tensor:
        """Run the sequences one after the other; see `Engine`."""
        keep = {"logits_to_keep": 1} if last_only and self._model._supports_logits_to_keep() else {}
        parts = []
        for cache, tokens in work:
            ids = torch.tensor([list(tokens)], device=self._model.device)
            logits = self._model(input_ids=ids, past_key_values=cache, use_cache=True, return_dict=True, **keep).logits[
                0
            ]
            parts.append(logits[-1:] if last_only else logits)
        return torch.cat(parts).float()


def choose_engine(model: Any) -> Engine:
    """Return the quickest engine that agrees with the model's ordinary forward.

    Raises:
        InputError: the model is no decoder with a cache that can be cut.
        NonFiniteError: it gives NaN or infinity.
    """
    check_model(model)
    if getattr(model, "_supports_attention_backend", False):
        engine = RaggedEngine(model)
        try:
            if _agrees(engine, model):
                return engine
        except (InputError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            if isinstance(error, NonFiniteError):
                raise
    if "sliding_attention" in _layer_types(model):
        raise InputError(
            f"{type(model).__name__} has a sliding-window cache, which cannot be cut, and its attention function "
            "cannot be exchanged; use a model with full attention"
        )
    single = SingleEngine(model)
    if not _agrees(single, model):
        raise InputError(
            f"{type(model).__name__} gives different logits after its cache was cut; its cache does not support this"
        )
    return single


def check_model(model: Any) -> None:
    """Refuse what is no decoder-only language model with an attention cache. Raises InputError."""
    name = type(model).__name__
    transformers = hugging_face()
    if not isinstance(model, transformers.PreTrainedModel) or not model.can_generate():
        raise InputError(f"{name} is no Hugging Face language model that can generate")
    if model.training:
        raise InputError(f"{name} is in training mode, where dropout makes outputs random; call model.eval() first")
    if model.config.is_encoder_decoder:
        raise InputError(f"{name} is an encoder-decoder; decoding by copying needs a decoder-only model")
    other = sorted(_layer_types(model) - _CUTTABLE)
    if getattr(model, "_is_stateful", False) or other:
        kind = ", ".join(other) or "state"
        raise InputError(f"{name} keeps a recurrent cache ({kind}), which cannot be cut; use an attention-only model")


def _layer_types(model: Any) -> set[str]:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds and getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        kinds.add("sliding_attention")
    return kinds


@torch.inference_mode()
def _agrees(engine: Engine, model: Any) -> bool:
    """Compare a mixed round after a cut (two sequences, 3 and 1 new tokens) with the ordinary forward."""
    size = model.config.get_text_config().vocab_size
    first = [(7 * step + 1) % size for step in range(8)]
    second = [(5 * step + 2) % size for step in range(4)]
    caches = [engine.new_cache(), engine.new_cache()]
    engine.run([(caches[0], first[:5]), (caches[1], [*second[:3], 0, 0])])
    engine.cut(caches[1], 3)
    got = engine.run([(caches[0], first[5:]), (caches[1], second[3:])])
    device = model.device
    wanted = [model(input_ids=torch.tensor([ids], device=device)).logits[0].float() for ids in (first, second)]
    want = torch.cat([wanted[0][5:], wanted[1][3:]])
    if not want.isfinite().all():
        raise NonFiniteError(f"{type(model).__name__} gives NaN or infinite logits; its weights are damaged")
    precise = model.dtype == torch.float32
    scale = want.abs().max().clamp_min(1e-6)
    return bool((got - want).abs().max() <= (1e-3 if precise else 5e-2) * scale)
