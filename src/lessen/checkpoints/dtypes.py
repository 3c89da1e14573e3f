"""Dtypes of arrays in checkpoints: the names that safetensors writes, their bytes, and what torch calls them."""

from __future__ import annotations

import torch

SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U16": 2, "U32": 4, "U64": 8, "C64": 8, "C128": 16, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1, "F8_E8M0": 1, "F4": 1,
}  # fmt: skip
"""Bytes of one element by name. Two F4 numbers share a byte and count as one element."""

_TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "C64": "complex64", "C128": "complex128", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}  # fmt: skip
NAMES = {name: kind for kind, name in _TORCH.items()}
"""Our name of a dtype by torch's, such as F32 by float32."""


def torch_dtype(kind: str) -> torch.dtype:
    """Return torch's dtype for a name in `SIZES`; bytes where this torch has none."""
    dtype: torch.dtype = getattr(torch, _TORCH[kind], torch.uint8)
    return dtype
