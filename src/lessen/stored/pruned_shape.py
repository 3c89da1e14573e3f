"""What layers of a pruned model say of themselves: counts of heads and widths that no tensor holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lessen.stored import checks
from lessen.stored.base import StoredPatch, stored

MODULE_NAMES = frozenset({
    "num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "num_kv_heads", "num_key_value_heads", "kv_heads",
    "all_head_size", "inner_dim", "intermediate_size", "hidden_size", "embed_dim", "layer_idx", "layer_id",
    "layer_number",
})  # fmt: skip
"""Attributes of a layer that may be set, where the layer has them already as whole numbers."""
CONFIG_NAMES = frozenset({
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "hidden_size", "intermediate_size",
    "num_attention_heads", "num_key_value_heads", "head_dim", "d_model", "ffn_dim", "hidden_dim", "dim", "d_ff",
    "ffn_hidden_size", "n_inner", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim",
})  # fmt: skip
"""Numbers of a configuration that may be set."""
DENSE = frozenset({"parameters", "macs"})
_MOST = 100_000
Numbers = dict[str, dict[str, int]]


@stored
class PrunedShape(StoredPatch):
    """Sets counts on layers and configurations by path when it is attached; it holds no tensor and changes no output.

    Args:
        modules: attributes by path of the module.
        configs: numbers of the configuration by path of the module that holds it; "" is the model.
        lists: for a path of a configuration, which entries of its `layer_types` stay.
        dense: parameters and multiply-adds of the model before anything was pruned, that shares refer to; and "macs of
            PLACES", those of named places.
        depths: blocks before anything was pruned, by path of the stack.
    """

    kind = "pruned-shape"
    only_notes = True

    def __init__(
        self, modules: Numbers, configs: Numbers, lists: dict[str, list[int]] | None = None,
        dense: dict[str, int] | None = None, depths: dict[str, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.modules_said = _numbers("modules", modules, MODULE_NAMES)
        self.configs_said = _numbers("configs", configs, CONFIG_NAMES)
        self.lists = {str(path): [_whole("lists", one) for one in kept] for path, kept in (lists or {}).items()}
        self.dense = dict(dense or {})
        for name, value in self.dense.items():
            if name.partition(" of ")[0] not in DENSE:
                raise ValueError(f"dense holds {name!r}, which is none of {', '.join(sorted(DENSE))}")
            checks.whole(f"dense[{name!r}]", value, 0, 2**62)
        self.depths = {str(path): _whole("depths", depth) for path, depth in (depths or {}).items()}

    def config(self) -> dict[str, Any]:
        """Return the numbers."""
        return {
            "modules": self.modules_said, "configs": self.configs_said, "lists": self.lists, "dense": self.dense,
            "depths": self.depths,
        }  # fmt: skip

    def attach(self, model: nn.Module) -> PrunedShape:
        """Set the numbers and become the child `pruned_shape` of the model.

        Raises:
            ValueError: a path is not in the model, or what is there has no such number.
        """
        known = dict(model.named_modules(remove_duplicate=False))
        for path, numbers in self.modules_said.items():
            _set(known.get(path), numbers, path)
        for path, numbers in self.configs_said.items():
            config = getattr(known.get(path), "config", None)
            _set(config, numbers, f"the configuration of {path or 'the model'}")
            _shorten_stages(config)
        for path, kept in self.lists.items():
            config = getattr(known.get(path), "config", None)
            listed = getattr(config, "layer_types", None)
            if isinstance(listed, (list, tuple)) and len(listed) > max(kept, default=0) and len(listed) != len(kept):
                config.layer_types = [listed[place] for place in kept]  # type: ignore[union-attr]
        model.add_module("pruned_shape", self)
        return self


def _shorten_stages(config: Any) -> None:
    """Let a backbone (DINOv2) that answers from its last stage know which that is now."""
    stages, depth = getattr(config, "stage_names", None), getattr(config, "num_hidden_layers", None)
    if isinstance(stages, list) and isinstance(depth, int) and depth + 1 < len(stages):
        last = config.out_features == stages[-1:]
        config.stage_names = stages[: depth + 1]
        if last:
            config.out_features = config.stage_names[-1:]


def _numbers(what: str, value: Any, names: frozenset[str]) -> Numbers:
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} must be a mapping of paths, found {value!r}")
    for path, numbers in value.items():
        if not isinstance(path, str) or not isinstance(numbers, Mapping):
            raise TypeError(f"{what} must hold numbers by path, found {path!r}: {numbers!r}")
        for name, number in numbers.items():
            if name not in names:
                raise ValueError(f"{what}[{path!r}] holds {name!r}, which may not be set")
            _whole(f"{what}[{path!r}][{name!r}]", number)
    return {path: dict(numbers) for path, numbers in value.items()}


def _whole(what: str, number: Any) -> int:
    return checks.whole(what, number, 0, _MOST)


def _set(holder: Any, numbers: dict[str, int], where: str) -> None:
    for name, number in numbers.items():
        if holder is None or not hasattr(holder, name):
            raise ValueError(f"{where} has no {name!r} to set")
        setattr(holder, name, number)
