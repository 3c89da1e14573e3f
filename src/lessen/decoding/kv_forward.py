"""What a model with a patched cache runs instead of its own forward; an object, so that a copied model stays patched.

text -> starts with the prefix?  -> the rest of it, behind the stored states -> logits, those of the prefix in front
cache -> empty and plain?        -> its layers become layers of `States`     -> codes for what is old enough

A cache that holds something continues as it is. A call without a cache, or one text after the prefix in a single pass,
sees that pass exactly: codes are read by later passes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.loading import hugging_face
from lessen.decoding.kv_layout import windows_of
from lessen.decoding.kv_library import kept_cache
from lessen.decoding.prefix import Prefix
from lessen.decoding.view import cache_argument
from lessen.errors import InputError

CODES, PREFIX = "key_value_codes", "prefix_states"
"""Names of the patches as children of the model."""
_PLAIN = {"DynamicLayer", "DynamicSlidingWindowLayer"}
_WHOLE = {"input_ids", "attention_mask", "labels", "logits_to_keep"}


class KeptForward:
    """Stands for the forward of a causal language model while patches of its cache are in place."""

    not_in_views = True
    """A decoder reads the model's own forward and keeps caches itself."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._own)

    @property
    def _own(self) -> Callable[..., Any]:
        return MethodType(type(self.model).forward, self.model)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Run the model. Raises InputError for texts that do not start with the prefix, or a cache of another kind."""
        name, model = cache_argument(self.model), self.model
        given = {**dict(zip(self.__signature__.parameters, arguments, strict=False)), **keywords}
        if "past_key_values" in given:
            given[name] = given.pop("past_key_values")
        cache, prefix = given.get(name), prefix_in(model)
        if cache is not None and cache.get_seq_length() > 0:
            return self._own(**given)
        wanted = given.get("use_cache")
        wanted = getattr(model.config, "use_cache", False) if wanted is None else wanted
        if cache is None and (wanted or prefix is not None):
            cache = hugging_face().DynamicCache(config=model.config.get_text_config(decoder=True))
        if cache is not None:
            keep_codes(model, cache)
            given[name] = cache
        if prefix is None:
            return self._own(**given)
        return self._after(prefix, given, name, bool(wanted))

    def _after(self, prefix: Prefix, given: dict[str, Any], name: str, wanted: bool) -> Any:
        """Return what the model says to texts that start with the prefix."""
        ids = given.get("input_ids")
        if ids is None or given.get("output_hidden_states") or given.get("output_attentions"):
            what = "embeddings in place of token ids" if ids is None else "hidden states or attentions"
            raise InputError(f"a model with a prefix cache takes no {what}; remove the patch for that")
        check_start(prefix, ids, given.get("attention_mask"))
        count, length = len(prefix.ids), ids.shape[1]
        prefix.fill(given[name], len(ids))
        labels, tuples = given.pop("labels", None), given.pop("return_dict", None) is False
        keep = given.pop("logits_to_keep", 0)
        inner = {key: _rest(key, value, count, length) for key, value in given.items()} | {"use_cache": True}
        if isinstance(keep, int) and 0 < keep <= length - count and labels is None:
            output = self._own(**inner, return_dict=True, logits_to_keep=keep)
        else:
            output = self._whole(prefix, inner, name, keep)
        if labels is not None:
            size = self.model.config.get_text_config().vocab_size
            output["loss"] = self.model.loss_function(logits=output.logits, labels=labels, vocab_size=size)
        if not wanted:
            output = type(output)(**{key: value for key, value in output.items() if key != name})
        return output.to_tuple() if tuples else output

    def _whole(self, prefix: Prefix, inner: dict[str, Any], name: str, keep: int | Tensor) -> Any:
        """Return the output with logits of all positions, or of those that `keep` names, the prefix's stored ones."""
        rows = inner["input_ids"].shape[0]
        logits = prefix.logits.expand(rows, *prefix.logits.shape)
        if inner["input_ids"].shape[1]:
            output = self._own(**inner, return_dict=True)
            logits = torch.cat([logits.to(output.logits.dtype), output.logits], 1)
        else:
            output = hugging_face().modeling_outputs.CausalLMOutputWithPast(logits=logits)
            output[name] = inner[name]
        if isinstance(keep, Tensor):
            logits = logits[:, keep]
        elif keep:
            logits = logits[:, -keep:]
        output["logits"] = logits
        return output


def keep_codes(model: nn.Module, cache: Any) -> None:
    """Give an empty cache layers that hold codes, where the model is patched so. The cache stays the caller's object.

    Raises:
        InputError: a cache of a fixed size or of another kind.
    """
    codes: Any = model._modules.get(CODES)
    prefix = prefix_in(model)
    if codes is None or not codes.form.coded:
        return
    kinds = {type(layer).__name__ for layer in cache.layers}
    if kinds and not kinds <= _PLAIN:
        raise InputError(
            f"the model keeps keys and values in codes, and was given a cache of {sorted(kinds)[0]}; leave "
            "cache_implementation out, or remove the patch"
        )
    exact = max(codes.first, len(prefix.ids) if prefix is not None else 0)
    cache.layers = kept_cache(windows_of(model), codes.form, exact).layers


def patched(model: nn.Module) -> bool:
    """Tell whether a patch of the cache is in place."""
    return isinstance(model.__dict__.get("forward"), KeptForward)


def prefix_in(model: nn.Module) -> Prefix | None:
    """Return the states of the prefix that a model continues from, or None."""
    found: Any = model._modules.get(PREFIX)
    return None if found is None else found.prefix


def check_start(prefix: Prefix, ids: Tensor, mask: Tensor | None) -> None:
    """Refuse texts int64 [B,T] that do not start with the prefix at position 0.

    Raises:
        InputError: padding on the left, a text that is shorter, or other first tokens.
    """
    count = len(prefix.ids)
    if mask is not None and mask.dim() == 2 and not bool(mask[:, : min(count, mask.shape[1])].all()):
        row = int((mask[:, :count] == 0).any(1).int().argmax())
        raise InputError(
            f"row {row} is padded in front, and a prefix cache stands at position 0; pad on the right, or give texts "
            "of different lengths to lessen's Decoder, which pads none"
        )
    wanted = torch.tensor(prefix.ids, device=ids.device)
    for row in ids:
        found = row[:count]
        if len(found) < count or not torch.equal(found, wanted):
            raise InputError(
                f"a text starts with the tokens {found.tolist()[:8]}, and the model's prefix cache was made for texts "
                f"that start with {list(prefix.ids[:8])}{' ...' if count > 8 else ''} ({count} in all); start it with "
                "them, or remove the patch"
            )


def _rest(name: str, value: Any, count: int, length: int) -> Any:
    """Return an argument without its part for the first `count` of `length` tokens."""
    if name == "input_ids":
        return value[:, count:]
    if name == "attention_mask" and isinstance(value, Tensor) and value.dim() == 4:
        return value[:, :, count:]
    if name in _WHOLE or not isinstance(value, Tensor) or value.dim() < 2 or value.shape[-1] != length:
        return value
    return value[..., count:]
