"""Choosing how a model runs: compiled where its blocks are known and its layers packed for integer products,
straight lines of operations where its blocks are known, unpadded passes through its own forward where its attention can
be exchanged, one sequence at a time elsewhere.

Which of them is right is found out by trying (`lessen.decoding.probe`): the model's own decoding past every window
and switch is compared with passes of the engine. A model for which none agrees is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lessen.architectures.loading import hugging_face
from lessen.decoding.compiled.engine import CompiledEngine
from lessen.decoding.kv_engine import bare_of, keeping
from lessen.decoding.probe import agrees, limits_of, rehearses
from lessen.decoding.protocol import Engine
from lessen.decoding.ragged import RaggedEngine
from lessen.decoding.settings import context_length
from lessen.decoding.straight import StraightEngine
from lessen.decoding.switching import SwitchingEngine, switch_of
from lessen.decoding.view import cache_argument, shared_view
from lessen.errors import InputError, LessenError, NonFiniteError

_CUTTABLE = {"full_attention", "sliding_attention", "chunked_attention"}


class SingleEngine:
    """Runs each sequence by itself through the model's own attention and dynamic cache.

    It is for models that build their attention bias themselves (Bloom, MPT ...): exact, without the gain of batches.
    """

    batched = False

    def __init__(self, model: Any) -> None:
        self.view = shared_view(model)
        self._cache_argument = cache_argument(model)
        self._keeps_rows = model._supports_logits_to_keep()

    def new_cache(self, reserve: int = 0) -> Any:  # noqa: ARG002 - the library's cache grows by itself
        """Return an empty cache that keeps every place, so that it can be cut; the mask enforces windows."""
        return hugging_face().DynamicCache()

    def cut(self, cache: Any, length: int) -> None:
        """Crop the cache to `length` tokens."""
        surplus = cache.get_seq_length() - length
        if surplus > 0:
            cache.crop(-surplus)

    def reach(self, cache: Any) -> int | None:  # noqa: ARG002 - see `Engine`
        """Return None: a pass may be of any length."""
        return None

    @torch.inference_mode()
    def run(self, work: Sequence[tuple[Any, Sequence[int]]], last_only: bool = False) -> Tensor:
        """Run the sequences one after the other; see `Engine`."""
        keep = {"logits_to_keep": 1} if last_only and self._keeps_rows else {}
        parts = []
        for cache, tokens in work:
            ids = torch.tensor([list(tokens)], device=self.view.device)
            given: dict[str, Any] = {self._cache_argument: cache, **keep}
            logits = self.view(input_ids=ids, use_cache=True, return_dict=True, **given).logits[0]
            parts.append(logits[-1:] if last_only else logits)
        return torch.cat(parts).float()


def build(kind: type[Any], model: Any) -> Engine:
    """Return an engine of a kind for a model, with passes kept on one side of a switch where it has one."""
    engine: Engine = kind(model)
    switch = switch_of(engine.view, context_length(model))
    return engine if switch is None else SwitchingEngine(engine, switch)


def choose_engine(model: Any) -> Engine:
    """Return the quickest engine that agrees with the model's own decoding.

    Raises:
        InputError: the model is no decoder with a cache that can be cut, or no engine agrees with it.
        NonFiniteError: it gives NaN or infinity.
    """
    check_model(model)
    patched, model = model, bare_of(model)
    kinds: list[type[Any]] = []
    if getattr(model, "_supports_attention_backend", False):
        kinds = [CompiledEngine, StraightEngine, RaggedEngine]
    why = "its cache was cut and then held something else"
    for kind in [*kinds, SingleEngine]:
        try:
            engine = build(kind, model)
            if not agrees(engine, model):
                why = "its logits after a cut of the cache differ"
            elif limits_of(model) and not rehearses(partial(build, kind), model):
                why = f"its decoding past {', '.join(sorted(limits_of(model)))} could not be reproduced"
            else:
                found: Engine = keeping(engine, patched)
                return found
        except NonFiniteError:
            raise
        except LessenError as error:
            why = str(error)
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    raise InputError(f"{type(model).__name__} cannot be decoded exactly with drafts: {why}; use model.generate")


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
    other = sorted(set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _CUTTABLE)
    if getattr(model, "_is_stateful", False) or other:
        kind = ", ".join(other) or "state"
        raise InputError(f"{name} keeps a recurrent cache ({kind}), which cannot be cut; use an attention-only model")
