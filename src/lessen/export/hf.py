"""A Hugging Face folder that transformers loads: configuration, tokenizer and safetensors, dense or with packed layers.

dense    every layer plain, by the library's own `save_pretrained`: any reader opens it
packed   codes as compressed-tensors lays them (see `compressed`): transformers with that package, vLLM
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lessen.architectures.loading import check_vocabulary, dtype_of, hugging_face, quiet
from lessen.architectures.parts import linear_sizes
from lessen.artifact.tensors import SHARD_BYTES
from lessen.errors import ConfigError, NonFiniteError
from lessen.export.codes import check_plain, coded, dense_weight, is_note, shared, token_table
from lessen.export.compressed import Form, configuration, pack_layer
from lessen.files import atomic_folder
from lessen.stored.base import StoredModule


@dataclass(frozen=True)
class Written:
    """What a folder holds."""

    bytes: int
    """Of its files of weights."""
    architecture: str
    packed: int
    """Layers that stay packed."""
    rounded: tuple[str, ...]
    """Tensors that the type asked for did not hold exactly."""
    decoded: tuple[str, ...]
    """Stored layers that were written dense though others stay packed."""


@dataclass
class _State:
    tensors: dict[str, Tensor]
    forms: dict[str, Form]
    decoded: list[str]


def export_hf(model: Any, words: Any, path: Path, *, dense: bool = False, dtype: str | None = None) -> Written:
    """Write a host model to the new folder `path`, all or nothing.

    Args:
        model: a Hugging Face model, plain or with stored layers; not changed.
        words: its tokenizer, or None.
        dense: decode packed layers too.
        dtype: of a dense folder, `float32`, `bfloat16` or `float16`; None keeps the model's. A packed folder is
            float32, for scales of other types would not give the values that were measured.

    Raises:
        ConfigError: no Hugging Face model, a form that the folder cannot hold, or a tokenizer that does not fit.
        NonFiniteError: a tensor holds NaN or infinity.
        OutputError: the folder cannot be written.
    """
    transformers = hugging_face()
    if not isinstance(model, transformers.PreTrainedModel):
        raise ConfigError(f"a {type(model).__name__} is no Hugging Face model, which such a folder is written from")
    check_plain(model, "a Hugging Face folder")
    rows = getattr(token_table(model), "num_embeddings", None) if words is not None else None
    if isinstance(rows, int):
        check_vocabulary(words, rows)
    state = _state(model, packs=not dense)
    if state.forms and dtype not in (None, "float32"):
        raise ConfigError(f"packed layers are exact in float32 only, not {dtype}; leave --dtype out, or add --dense")
    _check_finite(state.tensors)
    kind = dtype_of(dtype) if dtype is not None else model.dtype
    with atomic_folder(path) as folder:
        if state.forms:
            rounded: list[str] = []
            _write_packed(model, state, folder)
        else:
            rounded = _rounded(state.tensors, kind)
            _write_dense(model, state.tensors, folder, kind)
        if words is not None:
            words.save_pretrained(folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Written(size, type(model).__name__, len(state.forms), tuple(rounded), tuple(state.decoded))


def _state(model: Any, packs: bool) -> _State:
    """Return the state dictionary of the folder: plain names, packed layers in their parts."""
    found = _State({}, {}, [])
    every = model.named_modules()
    stored = {path: module for path, module in every if isinstance(module, StoredModule) and not is_note(module)}
    outer = {path: module for path, module in stored.items() if not any(_under(path, other) for other in stored)}
    tables = [token_table(model)]
    if shared(model):
        tables.append(model.get_output_embeddings())
    for path, module in outer.items():
        codes = coded(module) if packs and module not in tables else None
        if codes is not None:
            form, tensors = pack_layer(codes, path)
            found.forms[path] = form
            found.tensors |= {f"{path}.{name}": tensor for name, tensor in tensors.items()}
        else:
            if packs:
                found.decoded.append(f"{path} ({module.kind})")
            found.tensors[f"{path}.weight"] = dense_weight(module, path, "the folder")
        if isinstance(getattr(module, "bias", None), Tensor):
            found.tensors[f"{path}.bias"] = module.bias
    for name, tensor in model.state_dict().items():
        if not any(_under(name, path) for path in outer):
            found.tensors[name] = tensor
    return found


def _under(name: str, path: str) -> bool:
    return name.startswith(f"{path}.")


def _check_finite(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"{name} holds NaN or infinity; nothing was written")


def _rounded(tensors: dict[str, Tensor], kind: torch.dtype) -> list[str]:
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not torch.equal(tensor.to(kind).to(tensor.dtype), tensor)
    ]


def _write_dense(model: Any, tensors: dict[str, Tensor], folder: Path, kind: torch.dtype) -> None:
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = shared(model)
    config.dtype = kind
    with torch.device("meta"):
        plain = type(model)(config)
    tensors = _turned_back(model, plain, tensors)
    _check_widths(plain, tensors)
    cast = {name: one.to(kind) if one.is_floating_point() else one for name, one in tensors.items()}
    found = plain.load_state_dict(cast, strict=False, assign=True)
    for name in [*found.missing_keys, *found.unexpected_keys]:
        raise ConfigError(f"{name} has no place in a plain {type(model).__name__}; export the artifact of other steps")
    if config.tie_word_embeddings:
        plain.tie_weights()
    if model.can_generate():
        plain.generation_config = model.generation_config
    with quiet(hugging_face()):
        plain.save_pretrained(folder)


def _turned_back(model: Any, plain: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the matrices of linear layers that stand in the place of a Conv1D as it holds them."""
    own = dict(model.named_modules())
    turned = {
        f"{path}.weight"
        for path, module in plain.named_modules()
        if type(module).__name__ == "Conv1D" and type(own.get(path)).__name__ != "Conv1D"
    }
    return {name: one.t().contiguous() if name in turned else one for name, one in tensors.items()}


def _check_widths(plain: Any, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors of other sizes than the configuration says. Raises ConfigError."""
    for name, tensor in plain.state_dict().items():
        found = tensors.get(name)
        if found is not None and found.shape != tensor.shape:
            raise ConfigError(
                f"{name} is {list(found.shape)}, where the configuration says {list(tensor.shape)}: a folder holds "
                "the widths that its configuration can say, the same in all blocks; prune with uniform: true, or keep "
                "the lessen artifact"
            )


def _write_packed(model: Any, state: _State, folder: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    config = copy.deepcopy(model.config)
    config.tie_word_embeddings, config.dtype = shared(model), torch.float32
    plain = [path for path, one in model.named_modules() if linear_sizes(one)[0] and path not in state.forms]
    config.architectures = [type(model).__name__]
    config.quantization_config = configuration(state.forms, plain)
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    # scales stay float32: readers multiply in the type of the scales, where fp16 would round products
    tensors = {
        name: tensor if name.endswith("weight_scale") else _small(tensor) for name, tensor in state.tensors.items()
    }
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    save_torch_state_dict(tensors, folder, max_shard_size=SHARD_BYTES)


def _small(tensor: Tensor) -> Tensor:
    """Return a float32 tensor in 16 bits where that changes no value; readers widen it again."""
    if tensor.dtype == torch.float32:
        for kind in (torch.float16, torch.bfloat16):
            if torch.equal(tensor.to(kind).float(), tensor):
                return tensor.to(kind).contiguous()
    return tensor.detach().contiguous()
