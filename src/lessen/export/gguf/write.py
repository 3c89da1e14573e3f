"""The GGUF file: numbers, vocabulary and tensors of one causal language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lessen.architectures.find import find_parts
from lessen.architectures.parts import Parts
from lessen.errors import ConfigError, DataError, MissingExtraError, NonFiniteError
from lessen.export.codes import Coded, check_plain, coded, dense_weight, is_note, shared
from lessen.export.gguf import blocks, hosts, tokenizer
from lessen.files import writing
from lessen.stored.base import StoredModule

ALIGNMENT = 32


@dataclass(frozen=True)
class Written:
    """What a file holds."""

    bytes: int
    architecture: str
    kinds: dict[str, int]
    """Tensors of each GGML type."""
    rounded: tuple[str, ...]
    """Dense tensors that 16 bits did not hold exactly."""
    decoded: tuple[str, ...]
    """Stored layers that have no GGUF block and were written dense."""


Source = Coded | Tensor


def export_gguf(model: Any, words: Any, path: Path) -> Written:
    """Write a causal language model with its tokenizer to `path`, all or nothing.

    Packed linear layers keep their codes and scales bit for bit: 2 to 4 bits as Q4_0 or Q4_1, 5 as Q5_0 or Q5_1, 6 and
    8 as Q8_0. Everything else is F16 or BF16, vectors F32.

    Args:
        model: of a family that `hosts.FAMILIES` names; not changed.
        words: its tokenizer, which the file holds as well; None is refused once the rest is known to fit.

    Raises:
        ConfigError: a family, a tokenizer (or none), a stored form or a number that GGUF or llama.cpp cannot hold;
            which, and what to do.
        NonFiniteError: a tensor holds NaN or infinity.
        OutputError: the file cannot be written.
        MissingExtraError: gguf is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("hf", "gguf", "writing a GGUF file") from error
    config = getattr(model, "config", None)
    if config is None:
        raise ConfigError(f"a {type(model).__name__} is no Hugging Face language model, which GGUF is written from")
    check_plain(model, "GGUF")
    family, parts = hosts.family_of(config), find_parts(model, "decoder")
    hosts.check_uniform(parts.stack, config)
    rows = _rows(parts)
    if words is None:
        raise ConfigError(
            "the model comes without a tokenizer, and a GGUF file holds one; put tokenizer.json beside it"
        )
    vocabulary = tokenizer.read(words, rows)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.name.upper()], len(parts.stack.blocks))
    tensors: dict[str, blocks.Packed] = {}
    decoded: list[str] = []
    for name, source in _sources(model, decoded):
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ConfigError(f"llama.cpp has no place for the tensor {name} in a {family.name}")
        tensors[target] = _packed(name, _laid(name, source, family, parts))
    factors = hosts.rotary_factors(model, config)
    if factors is not None:
        tensors["rope_freqs.weight"] = blocks.plain(factors)
    writer = gguf.GGUFWriter(None, family.name)
    writer.add_type("model")
    writer.add_name(Path(str(config._name_or_path or family.name)).name)
    family.numbers(writer, config)
    writer.add_vocab_size(rows)
    writer.add_file_type(_file_type(gguf, tensors))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _words(writer, vocabulary)
    size = _write(gguf, writer, tensors, path)
    rounded = tuple(name for name, one in tensors.items() if one.rounded)
    kinds = dict(Counter(one.kind for one in tensors.values()))
    return Written(size, family.name, kinds, rounded, tuple(decoded))


def _rows(parts: Parts) -> int:
    table: Any = parts.stack.embedding.module if parts.stack.embedding is not None else None
    if table is None:
        raise ConfigError("the model has no token embedding")
    return int(table.num_embeddings)


def _sources(model: Any, decoded: list[str]) -> Iterator[tuple[str, Source]]:
    """Yield every weight by its name in a state dictionary, tied ones once, coded where it is."""
    inside: set[str] = set()
    tied = model.get_output_embeddings() if shared(model) else None
    for path, module in model.named_modules():
        plain = not isinstance(module, StoredModule) or is_note(module)
        if plain or any(path.startswith(f"{outer}.") for outer in inside):
            continue
        if module is tied:
            inside.add(path)
            continue
        inside.add(path)
        found = coded(module)
        if found is None:
            decoded.append(f"{path} ({module.kind})")
        yield f"{path}.weight", found if found is not None else dense_weight(module, path, "GGUF")
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            yield f"{path}.bias", bias
    for name, parameter in model.named_parameters():
        if not any(name.startswith(f"{outer}.") for outer in inside):
            yield name, parameter.detach()


def _laid(name: str, source: Source, family: hosts.Family, parts: Parts) -> Source:
    """Return a weight as llama.cpp lays it: rows in its order, matrices [out, in], norms with their one added."""
    path, _, _ = name.rpartition(".")
    for block in parts.stack.blocks:
        attention = block.attention
        if family.swapped and attention is not None and path in (attention.query.path, attention.key.path):
            heads = attention.heads if path == attention.query.path else attention.kv_heads
            order = hosts.swap(heads * attention.head_dim, heads)
            return source.rows(order) if isinstance(source, Coded) else source[order]
        linear = block.linears.get(path)
        if linear is not None and linear.transposed and isinstance(source, Tensor) and source.dim() == 2:
            return source.t()
    if family.shifted_norms and isinstance(source, Tensor) and path.endswith("norm"):
        return source.float() + 1
    return source


def _packed(name: str, source: Source) -> blocks.Packed:
    if isinstance(source, Coded):
        return blocks.pack(source, name.rpartition(".")[0])
    if not bool(torch.isfinite(source).all()):
        raise NonFiniteError(f"{name} holds NaN or infinity; nothing was written")
    return blocks.plain(source)


def _file_type(gguf: Any, tensors: dict[str, blocks.Packed]) -> Any:
    """Return the kind that holds most bytes, which is what readers show as the file's."""
    held: Counter[str] = Counter()
    for one in tensors.values():
        held[one.kind] += one.data.nbytes
    kind = held.most_common(1)[0][0]
    return gguf.LlamaFileType.ALL_F32 if kind == "F32" else gguf.LlamaFileType[f"MOSTLY_{kind}"]


def _words(writer: Any, vocabulary: tokenizer.Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    for name, number in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    writer.add_add_space_prefix(False)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)


def _write(gguf: Any, writer: Any, tensors: dict[str, blocks.Packed], path: Path) -> int:
    for name, one in tensors.items():
        raw = gguf.GGMLQuantizationType[one.kind]
        writer.add_tensor(name, np.ascontiguousarray(one.data), raw_dtype=raw)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with writing(path):
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            temporary.replace(path)
    except ValueError as error:
        raise DataError(f"{path} cannot be written as GGUF: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path.stat().st_size
