"""A cache for transformers that holds `States`: what a model fills, reads, crops and reorders like its own.

cache = kept_cache(windows, form, exact=4)
model(input_ids=ids, cache=cache)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor

from lessen.architectures.loading import hugging_face
from lessen.decoding.kv_codes import Form
from lessen.decoding.kv_states import States
from lessen.errors import InputError


def kept_cache(windows: Sequence[int | None], form: Form, exact: int = 0) -> Any:
    """Return an empty transformers Cache with a layer of `States` for each window (None: the layer sees all)."""
    layer = _layer_class()
    return hugging_face().Cache(layers=[layer(States(form, exact, window)) for window in windows])


@cache
def _layer_class() -> Any:
    """Return the layer class; the library that it belongs to is an extra, imported here."""
    hugging_face()
    from transformers.cache_utils import CacheLayerMixin

    mixin: Any = CacheLayerMixin

    class KeptLayer(mixin):  # type: ignore[misc]
        """One layer: an update gives what was held, decoded, with the new states exact behind it."""

        is_croppable = True
        is_compileable = False

        def __init__(self, states: States) -> None:
            super().__init__()
            self.states, self.is_sliding = states, states.window is not None

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:  # noqa: ARG002
            self.device, self.is_initialized = key_states.device, True

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            self.lazy_initialization(key_states, value_states)
            self.states.add(key_states, value_states)
            found = self.states.read()
            self.states.settle()
            return found

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            new = query_length if isinstance(query_length, int) else len(query_length)
            return self.states.held + new, self.states.gone

        def get_seq_length(self) -> int:
            return self.states.length

        def get_max_length(self) -> int:
            return -1

        get_max_cache_shape = get_max_length

        def crop(self, tokens_to_remove: int) -> None:
            left = self.states.length + tokens_to_remove if tokens_to_remove <= 0 else tokens_to_remove
            self.states.cut(left)

        def reset(self) -> None:
            self.states = States(self.states.form, self.states.exact, self.states.window)

        def reorder_cache(self, beam_idx: Tensor) -> None:
            self.states.change(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

        def batch_repeat_interleave(self, repeats: int) -> None:
            self.states.change(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

        def batch_select_indices(self, indices: Tensor) -> None:
            self.states.change(lambda tensor: tensor[indices, ...])

        def offload(self) -> None:
            raise InputError("a cache in codes cannot be offloaded; leave offloading out, or remove the patch")

    return KeptLayer
