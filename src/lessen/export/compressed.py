"""The layout `pack-quantized` of compressed-tensors: codes in int32 words, as transformers and vLLM read them.

weight_packed      int32 [out, words]     32 codes in `bits` words, low bits first, each row from a whole word on
weight_scale       [out, groups]
weight_zero_point  int32 [words, groups]  zero points packed along the outputs, of asymmetric layers only
weight_shape       int64 [2]

Codes count from zero up, as ours do. Readers take 4 and 8 bits; fewer bits are written as the next of them, exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lessen.errors import ConfigError
from lessen.export.codes import Coded

WORD = 32


@dataclass(frozen=True)
class Form:
    """What layers of one entry of `config_groups` have in common."""

    bits: int
    group: int | None
    """Inputs of a group; None: a whole row."""
    symmetric: bool

    def described(self, targets: list[str]) -> dict[str, Any]:
        """Return the entry of `config_groups`."""
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "channel" if self.group is None else "group",
            "group_size": self.group,
            "dynamic": False,
        }
        return {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """Pack codes below 2^bits, any integer type [rows, count], into int32 [rows, ceil(count * bits / 32)]."""
    rows, count = codes.shape
    words = math.ceil(count * bits / WORD)
    padded = functional.pad(codes.to(torch.int64), (0, -count % WORD)).view(rows, -1, WORD)
    places = torch.arange(WORD) * bits
    shifted = padded << (places % WORD)
    packed = torch.zeros(rows, padded.shape[1], bits + 1, dtype=torch.int64)
    first = (places // WORD).expand_as(padded)
    packed.scatter_add_(2, first, shifted & 0xFFFFFFFF)
    packed.scatter_add_(2, first + 1, shifted >> WORD)  # what a code has beyond its word
    flat = packed[..., :bits].reshape(rows, -1)[:, :words]
    return torch.where(flat >= 2**31, flat - 2**32, flat).to(torch.int32)


def unpack_words(words: Tensor, bits: int, count: int) -> Tensor:
    """Return the codes uint8 [rows, count] of int32 words."""
    wide = functional.pad(words.to(torch.int64) & 0xFFFFFFFF, (0, 1))
    places = torch.arange(count) * bits
    both: Tensor = wide[:, places // WORD] | (wide[:, places // WORD + 1] << WORD)
    codes: Tensor = (both >> (places % WORD)) & (2**bits - 1)
    return codes.to(torch.uint8)


def pack_layer(weight: Coded, path: str) -> tuple[Form, dict[str, Tensor]]:
    """Return the form of a coded weight and its tensors by their last name; every value is kept.

    Raises:
        ConfigError: minimums are no whole multiples of their scales; says what to set.
    """
    zeros, bits = weight.zeros, 4 if weight.grid.bits <= 4 else 8
    if zeros is None:
        raise ConfigError(
            f"{path} holds {weight.label} that are no whole multiples of their scale, and compressed-tensors keeps "
            f"whole zero points; compress with {weight.remedy}, or export with --dense"
        )
    symmetric = weight.grid.minimums is None
    width = math.gcd(weight.grid.group, weight.inputs)
    codes = weight.codes
    if symmetric:
        codes = codes + (2 ** (bits - 1) - 2 ** (weight.grid.bits - 1))
    tensors = {
        "weight_packed": pack_words(codes, bits),
        "weight_scale": weight.spread(weight.grid.scales, width).float().contiguous(),
        "weight_shape": torch.tensor(weight.codes.shape, dtype=torch.int64),
    }
    if not symmetric:
        tensors["weight_zero_point"] = pack_words(weight.spread(zeros, width).t(), bits).t().contiguous()
    return Form(bits, None if width == weight.inputs else width, symmetric), tensors


def unpack_layer(form: Form, tensors: dict[str, Tensor]) -> Tensor:
    """Return the dense weight, float32 [out, in], that a reader makes of a layer's tensors."""
    rows, inputs = tensors["weight_shape"].tolist()
    codes = unpack_words(tensors["weight_packed"], form.bits, inputs).float()
    scales = tensors["weight_scale"].float()
    zeros: Tensor | float = 2.0 ** (form.bits - 1)
    if not form.symmetric:
        packed = tensors["weight_zero_point"].t()
        zeros = unpack_words(packed, form.bits, rows).t().float().repeat_interleave(form.group or inputs, 1)
    return (codes - zeros) * scales.repeat_interleave(form.group or inputs, 1)


def configuration(forms: dict[str, Form], plain: list[str]) -> dict[str, Any]:
    """Return `quantization_config` of packed layers by path.

    Args:
        plain: paths of linear layers that stay dense.
    """
    kinds = list(dict.fromkeys(forms.values()))
    if len(kinds) == 1:
        groups = {"group_0": kinds[0].described(["Linear"])}
    else:
        groups = {
            f"group_{number}": kind.described([path for path, form in forms.items() if form == kind])
            for number, kind in enumerate(kinds)
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": plain,
        "kv_cache_scheme": None,
    }
