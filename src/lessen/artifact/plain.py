"""Plain layers of torch that a method may put into a model: which there are, and the arguments that rebuild each.

Each is data: the class and the names of its constructor's arguments, which are also its attributes. Nothing is imported
by a name that stands in an artifact, and no argument beside these is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils import parametrize

Config = dict[str, Any]


class Plain(NamedTuple):
    """A layer of torch: `always` are the arguments that are always written, `also` those that differ from a default."""

    cls: type[nn.Module]
    always: tuple[str, ...] = ()
    also: Mapping[str, Any] = {}


_CONV = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "bias",
    "padding_mode",
)
_NORM = {"momentum": 0.1, "track_running_stats": True}
_POOL = {"stride": None, "padding": 0, "ceil_mode": False}
_EMBEDDING = {"max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False, "sparse": False}

PLAIN: dict[str, Plain] = {
    "torch.Linear": Plain(nn.Linear, ("in_features", "out_features", "bias")),
    "torch.Embedding": Plain(nn.Embedding, ("num_embeddings", "embedding_dim", "padding_idx"), _EMBEDDING),
    "torch.EmbeddingBag": Plain(
        nn.EmbeddingBag, ("num_embeddings", "embedding_dim", "mode", "padding_idx", "include_last_offset"), _EMBEDDING
    ),
    "torch.Conv1d": Plain(nn.Conv1d, _CONV),
    "torch.Conv2d": Plain(nn.Conv2d, _CONV),
    "torch.ConvTranspose2d": Plain(nn.ConvTranspose2d, _CONV, {"output_padding": (0, 0)}),
    "torch.BatchNorm1d": Plain(nn.BatchNorm1d, ("num_features", "eps", "affine"), _NORM),
    "torch.BatchNorm2d": Plain(nn.BatchNorm2d, ("num_features", "eps", "affine"), _NORM),
    "torch.GroupNorm": Plain(nn.GroupNorm, ("num_groups", "num_channels", "eps", "affine")),
    "torch.LayerNorm": Plain(nn.LayerNorm, ("normalized_shape", "eps"), {"elementwise_affine": True, "bias": True}),
    "torch.RMSNorm": Plain(nn.RMSNorm, ("normalized_shape", "eps"), {"elementwise_affine": True}),
    "torch.Identity": Plain(nn.Identity),
    "torch.ReLU": Plain(nn.ReLU, (), {"inplace": False}),
    "torch.ReLU6": Plain(nn.ReLU6, (), {"inplace": False}),
    "torch.LeakyReLU": Plain(nn.LeakyReLU, ("negative_slope",), {"inplace": False}),
    "torch.GELU": Plain(nn.GELU, ("approximate",)),
    "torch.SiLU": Plain(nn.SiLU, (), {"inplace": False}),
    "torch.Mish": Plain(nn.Mish, (), {"inplace": False}),
    "torch.Hardswish": Plain(nn.Hardswish, (), {"inplace": False}),
    "torch.Sigmoid": Plain(nn.Sigmoid),
    "torch.Tanh": Plain(nn.Tanh),
    "torch.Softmax": Plain(nn.Softmax, ("dim",)),
    "torch.Dropout": Plain(nn.Dropout, ("p",), {"inplace": False}),
    "torch.AvgPool2d": Plain(nn.AvgPool2d, ("kernel_size",), {**_POOL, "count_include_pad": True}),
    "torch.MaxPool2d": Plain(nn.MaxPool2d, ("kernel_size",), {**_POOL, "dilation": 1}),
    "torch.AdaptiveAvgPool2d": Plain(nn.AdaptiveAvgPool2d, ("output_size",)),
    "torch.Flatten": Plain(nn.Flatten, ("start_dim", "end_dim")),
    "torch.Sequential": Plain(nn.Sequential),
    "torch.ModuleList": Plain(nn.ModuleList),
}
"""Layers by the name that an artifact writes; matched by exact type."""
HOLDERS = (nn.Sequential, nn.ModuleList)
"""Layers that hold others, each with a record of its own; `length` says how many."""
_NAMES = {plain.cls: name for name, plain in PLAIN.items()}


def plain_name(module: nn.Module) -> str | None:
    """Return the name of a plain layer's class, or None for any other module."""
    return _NAMES.get(type(module))


def plain_config(module: nn.Module) -> Config | None:
    """Return the JSON values that rebuild a plain layer, or None for any other module."""
    name = plain_name(module)
    if name is None:
        return None
    if isinstance(module, HOLDERS):
        return {"length": len(module)}
    plain = PLAIN[name]
    found = {key: _value(module, key) for key in plain.always}
    other = {key: _value(module, key) for key in plain.also}
    return {**found, **{key: value for key, value in other.items() if value != _json(plain.also[key])}}


def same_class(module: nn.Module, other: nn.Module) -> bool:
    """Tell whether two modules are of one class; torch makes a new class for every layer that it parametrises."""
    if parametrize.is_parametrized(module) and parametrize.is_parametrized(other):
        return parametrize.type_before_parametrizations(module) is parametrize.type_before_parametrizations(other)
    return type(other) is type(module)


def build_plain(name: str, config: Mapping[str, Any]) -> nn.Module:
    """Build an empty layer. Raises TypeError or ValueError for arguments that it does not take or cannot be."""
    plain = PLAIN[name]
    if plain.cls in HOLDERS:
        length = config.get("length")
        if set(config) != {"length"} or type(length) is not int or not 0 <= length <= 10_000:
            raise ValueError(f"a {name} needs its length, 0 to 10000, found {dict(config)!r}")
        parts = [nn.Identity() for _ in range(length)]
        return nn.ModuleList(parts) if plain.cls is nn.ModuleList else nn.Sequential(*parts)
    unknown = sorted(set(config) - {*plain.always, *plain.also})
    if unknown:
        raise ValueError(f"a {name} takes no {unknown[0]!r}")
    return plain.cls(**{key: _argument(key, value) for key, value in config.items()})


def _value(module: nn.Module, key: str) -> Any:
    value = getattr(module, key)
    if key in ("bias", "elementwise_affine") and not isinstance(value, bool):
        return value is not None
    return _json(value)


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _argument(key: str, value: Any) -> Any:
    """Return a JSON value as an argument: a number, a word, or a short tuple of whole numbers."""
    if isinstance(value, list):
        if len(value) > 8 or not all(type(item) is int or item is None for item in value):
            raise ValueError(f"{key} must be a few whole numbers, found {value!r}")
        return tuple(value)
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise TypeError(f"{key} must be a number, a word or a list, found {value!r}")
    return value
