"""Tensors in safetensors files: sizes by arithmetic, written as a stream, cut into shards, read by mapping.

A file is: 8 bytes, the length of the header | the header, JSON padded with spaces to a multiple of 8 | the bytes of
each tensor. Tensors are ordered by type, widest first, then by name, as the safetensors library orders them, so that a
file is the same byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lessen import files
from lessen.errors import ArtifactError

SHARD_BYTES = 512 * 2**20
"""Bytes of tensors that one file holds at most, unless a single tensor is larger."""
PIECE = 1 << 24
WIDEST_FIRST = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64", torch.float32: "F32",
    torch.uint32: "U32", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16",
    torch.int16: "I16", torch.float8_e8m0fnu: "F8_E8M0", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Types that a file can hold, in the order in which it holds them."""
RANK = {dtype: rank for rank, dtype in enumerate(WIDEST_FIRST)}


class Form(NamedTuple):
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Weights(Protocol):
    """Named tensors, wherever they lie: their forms at once, the tensors themselves one after another."""

    @property
    def forms(self) -> Mapping[str, Form]:
        """Return shape and type of each tensor, without reading it."""
        ...

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each name with its tensor; a tensor need not outlive the step."""
        ...


class Held:
    """Tensors that are in memory already."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.forms = {name: form_of(tensor) for name, tensor in tensors.items()}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.tensors.items())


class Joined:
    """Tensors of several places under names of their own."""

    def __init__(self, *parts: Weights) -> None:
        """Put the parts side by side. Raises ArtifactError for a tensor that two of them hold."""
        self.parts = parts
        self.forms: dict[str, Form] = {}
        for part in parts:
            twice = self.forms.keys() & part.forms.keys()
            if twice:
                raise ArtifactError(f"the tensor {min(twice)!r} is stored and taken from the base too")
            self.forms.update(part.forms)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for part in self.parts:
            yield from part


class Filed:
    """Tensors of safetensors files: headers are read at once, one file is mapped at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the headers. Raises ArtifactError for a file that is none, or a tensor that two files hold."""
        self.paths = list(paths)
        self.forms: dict[str, Form] = {}
        self.metadata: dict[str, str] = {}
        for path in self.paths:
            with _opened(path) as handle:
                self.metadata.update(handle.metadata() or {})
                for name in handle.keys():  # noqa: SIM118 - not a mapping
                    if name in self.forms:
                        raise ArtifactError(f"{path} holds the tensor {name!r}, which another file holds too")
                    self.forms[name] = _form(handle.get_slice(name), path)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for path in self.paths:
            with _opened(path) as handle:
                for name in handle.keys():  # noqa: SIM118 - not a mapping
                    yield name, handle.get_tensor(name)


def form_of(tensor: Tensor) -> Form:
    """Return shape and type of a tensor."""
    return Form(tuple(tensor.shape), tensor.dtype)


def _opened(path: Path) -> Any:
    files.open_regular(path).close()
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise ArtifactError(f"{path} is not a valid safetensors file: {error}") from error


def _form(slice_of: Any, path: Path) -> Form:
    known = {name: dtype for dtype, name in WIDEST_FIRST.items()}
    dtype = known.get(slice_of.get_dtype())
    if dtype is None:
        raise ArtifactError(f"{path} holds numbers of type {slice_of.get_dtype()}, which this version cannot read")
    return Form(tuple(slice_of.get_shape()), dtype)


# -- what can be stored ------------------------------------------------------------------------------------------
def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model, every tensor one that a file can hold.

    Raises:
        ArtifactError: a tensor without values, of a form that has no file format, or an entry that is no tensor;
            named, with what to do.
    """
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        fault = _fault(value)
        if fault:
            raise ArtifactError(f"{name!r} cannot be stored: {fault}")
        state[name] = value.detach()
    return state


def _fault(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"it is a {type(value).__name__}, not a tensor; keep it in the constructor's arguments"
    if is_lazy(value):
        return "its layer has not been called yet and has no shape; call the model once"
    if value.is_meta:
        return "it is on the device 'meta' and has no values; load the weights first"
    if value.is_nested:
        return "it is a nested tensor; keep its parts as tensors of their own"
    if value.layout != torch.strided:
        return f"it is {str(value.layout).removeprefix('torch.')}; call .to_dense() on it"
    if value.is_quantized:
        return "it is one of torch's quantised tensors; call .dequantize() on it, or keep its integers and scales"
    if type(value) not in (Tensor, nn.Parameter, nn.Buffer):
        return f"it is a {type(value).__name__}, a tensor of a class of its own; store plain tensors"
    if value.dtype not in WIDEST_FIRST:
        return f"no file holds numbers of type {str(value.dtype).removeprefix('torch.')}; convert it"
    return ""


def distinct(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split a state into distinct tensors and the names that share one of them, each with the name it shares."""
    kept: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
        if tensor.numel() and key in kept:
            tied[name] = kept[key]
            continue
        kept[key] = name
        tensors[name] = tensor
    return tensors, tied


def raw(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in order; those of a contiguous one on the CPU are not copied."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Tell whether two tensors hold the same bytes, zeros of both signs and NaN told apart."""
    if form_of(left) != form_of(right):
        return False
    if left.data_ptr() == right.data_ptr() and left.stride() == right.stride() and left.device == right.device:
        return True
    one, other = (side.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for side in (left, right))
    return all(torch.equal(a, b) for a, b in zip(torch.split(one, PIECE), torch.split(other, PIECE), strict=True))


def digest_of(state: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of names, shapes, types and values of a state."""
    found = hashlib.sha256()
    for name in sorted(state):
        form = form_of(state[name])
        found.update(f"{name}\0{WIDEST_FIRST.get(form.dtype, form.dtype)}\0{list(form.shape)}\0".encode())
        found.update(raw(state[name]))
    return found.hexdigest()


# -- writing -----------------------------------------------------------------------------------------------------
def ordered(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names in the order of a file."""
    return sorted(tensors, key=lambda name: (RANK[tensors[name].dtype], name.encode()))


def header(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the head of a file: length and JSON, padded to a multiple of 8."""
    content, end = {}, 0
    for name in ordered(tensors):
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        content[name] = {"dtype": WIDEST_FIRST[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size of the file that holds `tensors`, by arithmetic."""
    return len(header(tensors)) + bytes_of(tensors)


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def shards(tensors: Mapping[str, Tensor], largest: int = SHARD_BYTES) -> list[dict[str, Tensor]]:
    """Cut tensors, in their order, into groups of at most `largest` bytes; at least one group."""
    groups: list[dict[str, Tensor]] = [{}]
    held = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if groups[-1] and held + size > largest:
            groups.append({})
            held = 0
        groups[-1][name] = tensor
        held += size
    return groups


class Hashing:
    """Writes to a file and keeps the SHA-256 and the number of bytes on the way."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle, self.found, self.bytes = handle, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        """Write all of `data`."""
        self.found.update(data)
        files.FILES.write(self.handle, data)  # type: ignore[arg-type]
        self.bytes += len(data)


def write(out: Hashing, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; beside the tensors at most one of them is in memory, if it must be made contiguous."""
    out.write(header(tensors))
    for name in ordered(tensors):
        data = raw(tensors[name])
        for start in range(0, len(data), PIECE):
            out.write(data[start : start + PIECE])
