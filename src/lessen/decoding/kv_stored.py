"""Patches of a language model's cache as they are stored: settings, and the states of the first tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lessen.decoding.kv_codes import EXACT, Form
from lessen.decoding.kv_forward import CODES, PREFIX, KeptForward
from lessen.decoding.kv_layout import windows_of
from lessen.decoding.prefix import Prefix, check_length
from lessen.errors import InputError
from lessen.stored import checks
from lessen.stored.base import StoredPatch, stored

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@stored
class KeyValueCodes(StoredPatch):
    """A child of the model that holds no tensor, only how its cache holds keys and values."""

    kind = "key-value-codes"
    not_exported = "a cache in codes is how lessen and transformers decode; no file format says it"

    def __init__(self, bits: int = 4, group: int = 32, residual: int = 128, first: int = 4) -> None:
        super().__init__()
        bits = checks.one_of("bits", bits, (2, 4, 8, EXACT))
        group, residual = checks.whole("group", group, 1, 2**20), checks.whole("residual", residual, 0, 2**30)
        self.form = Form(bits, group, residual)
        self.first = checks.whole("first", first, 0, 2**30)

    def config(self) -> dict[str, Any]:
        """Return bits, group, residual window, and first tokens kept exact."""
        form = self.form
        return {"bits": form.bits, "group": form.group, "residual": form.residual, "first": self.first}

    def attach(self, model: nn.Module) -> None:
        """Patch `model`. Raises InputError: patched already, or a cache that is not known."""
        windows_of(model)
        _put(model, CODES, self)


@stored
class PrefixStates(StoredPatch):
    """A child of the model that holds the states of its first tokens, as the full-precision model made them.

    Buffers: ids int64 [P], logits [P, vocabulary], and for each layer keys_i and values_i [kv heads, P, width].
    """

    kind = "prefix-states"
    role = "prefix"
    not_exported = "the states of its first tokens belong in front of lessen's and transformers' caches only"

    def __init__(self, tokens: int, vocabulary: int, layers: Sequence[Sequence[int]], dtype: str = "float32") -> None:
        super().__init__()
        kind = _DTYPES[checks.one_of("dtype", dtype, tuple(_DTYPES))]
        tokens, vocabulary = checks.whole("tokens", tokens, 1, 2**20), checks.whole("vocabulary", vocabulary, 1, 2**24)
        checks.elements("logits", tokens, vocabulary)
        self.register_buffer("ids", torch.zeros(tokens, dtype=torch.int64))
        self.register_buffer("logits", torch.zeros(tokens, vocabulary, dtype=kind))
        self.shapes: list[list[int]] = []
        if not isinstance(layers, (list, tuple)) or not 0 < len(layers) <= 2**16:
            raise ValueError("layers must be a list of [kv heads, width of keys, width of values]")
        for number, shape in enumerate(layers):
            if not isinstance(shape, (list, tuple)) or len(shape) != 3:
                raise TypeError(f"a layer must be [kv heads, width of keys, width of values], found {shape!r}")
            heads, *widths = (checks.whole("a layer's size", side, 1, 2**20) for side in shape)
            for name, width in zip(("keys", "values"), widths, strict=True):
                checks.elements(name, heads, tokens, width)
                self.register_buffer(f"{name}_{number}", torch.zeros(heads, tokens, width, dtype=kind))
            self.shapes.append([heads, *widths])

    def config(self) -> dict[str, Any]:
        """Return the number of tokens, the size of the vocabulary, heads and widths of each layer, and their type."""
        tokens, vocabulary = self.logits.shape
        shapes, kind = [list(shape) for shape in self.shapes], str(self.logits.dtype).removeprefix("torch.")
        return {"tokens": int(tokens), "vocabulary": int(vocabulary), "layers": shapes, "dtype": kind}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PrefixStates:
        """Build an empty twin. Raises ValueError or TypeError for values that make no sense."""
        return cls(**config)

    @classmethod
    def of(cls, prefix: Prefix) -> PrefixStates:
        """Return the module that holds a prefix, in its own types."""
        shapes = [(keys.shape[0], keys.shape[2], values.shape[2]) for keys, values in prefix.layers]
        kind = str(prefix.logits.dtype).removeprefix("torch.")
        made = cls(len(prefix.ids), prefix.logits.shape[1], shapes, kind).to(prefix.logits.device)
        made.ids.copy_(torch.tensor(prefix.ids))
        made.logits.copy_(prefix.logits)
        made.put(prefix.layers)
        return made

    def put(self, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Take other keys and values of the same shapes."""
        for number, (keys, values) in enumerate(layers):
            self.get_buffer(f"keys_{number}").copy_(keys.detach())
            self.get_buffer(f"values_{number}").copy_(values.detach())

    @property
    def prefix(self) -> Prefix:
        """The states, as they are used."""
        pairs = ((self.get_buffer(f"keys_{n}"), self.get_buffer(f"values_{n}")) for n in range(len(self.shapes)))
        return Prefix(tuple(self.ids.tolist()), tuple(pairs), self.logits)

    def check_values(self) -> None:
        """Refuse ids outside the vocabulary and states that are not finite. Raises ValueError."""
        checks.within("ids", self.ids, 0, self.logits.shape[1] - 1)
        for name, tensor in self.named_buffers():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} holds NaN or infinity")

    def attach(self, model: nn.Module) -> None:
        """Patch `model`. Raises InputError: patched already, or a model of another shape."""
        windows = windows_of(model)
        check_length(model, windows, len(self.ids))
        name, rows = type(model).__name__, model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
        if len(windows) != len(self.shapes) or rows != self.logits.shape[1]:
            raise InputError(
                f"the prefix has {len(self.shapes)} layers and {self.logits.shape[1]} logits, {name} has "
                f"{len(windows)} and {rows}; it belongs to another model"
            )
        _put(model, PREFIX, self)


def _put(model: nn.Module, name: str, patch: StoredPatch) -> None:
    if name in model._modules:
        raise InputError(f"the model has its {patch.kind} already; call detach() on it first")
    forward = model.__dict__.get("forward")
    if forward is not None and not isinstance(forward, KeptForward):
        raise InputError(
            f"something else has replaced the forward of this {type(model).__name__} (accelerate's hooks do, for "
            "offloading); remove it before the cache is patched"
        )
    model.add_module(name, patch)
    model.__dict__["forward"] = KeptForward(model)


def detach(model: nn.Module) -> None:
    """Take every patch of the cache out of `model`: it is what it was before."""
    for name in (CODES, PREFIX):
        model._modules.pop(name, None)
    if isinstance(model.__dict__.get("forward"), KeptForward):
        del model.__dict__["forward"]
