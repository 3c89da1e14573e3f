"""Building an ONNX graph node by node: operators by name, constants once, and layers in the forms that weights have."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lessen.export.codes import coded, dense_weight, held
from lessen.export.matmul_nbits import Blocks, blocks_of
from lessen.stored.base import StoredModule

OPSET, IR_VERSION = 20, 10
MICROSOFT = "com.microsoft"


class Graph:
    """Nodes and constants of a graph in the making; values are names."""

    def __init__(self, accuracy_level: int) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.packed: list[str] = []
        """Layers that stay packed."""
        self._accuracy, self._count = accuracy_level, 0
        self._known: dict[int, Any] = {}

    def op(self, kind: str, *inputs: str, domain: str = "", name: str | None = None, **attributes: Any) -> str:
        """Add an operator and return its output, called `name` if that is given."""
        return self.ops(kind, *inputs, domain=domain, names=[name] if name else None, **attributes)[0]

    def ops(
        self,
        kind: str,
        *inputs: str,
        outputs: int = 1,
        domain: str = "",
        names: list[str] | None = None,
        **attributes: Any,
    ) -> list[str]:
        """Add an operator of several outputs."""
        from onnx import helper

        made = names or [self._name(kind.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, domain=domain, **attributes))
        return made

    def constant(self, value: Any, name: str | None = None) -> str:
        """Add a constant; equal small ones are one."""
        array = np.ascontiguousarray(value)
        if name is None:
            if array.size <= 64:
                name = f"c_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()}"
            else:
                name = self._name("constant")
        self.constants.setdefault(name, array)
        return name

    def ints(self, *values: int) -> str:
        """Add a constant vector of int64."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        """Add a constant float32."""
        return self.constant(np.float32(value))

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"

    # -- layers ------------------------------------------------------------------------------------------------
    def linear(self, module: Any, path: str, inputs: str) -> str:
        """Add a linear layer [*, in] to [*, out], packed where its weight is."""
        codes = coded(module)
        if codes is not None:
            found = self._product(self._blocks(module, path), inputs, path)
        else:
            weight = self._dense(module, path)
            found = self.op("MatMul", inputs, self.op("Transpose", weight, perm=[1, 0]))
        bias = getattr(module, "bias", None)
        return found if bias is None else self.op("Add", found, self.constant(_array(bias), f"{path}.bias"))

    def table(self, module: Any, path: str, ids: str) -> str:
        """Add a lookup [*] to [*, width]; a table of codes unpacks the rows that it reads."""
        if coded(module) is None:
            return self.op("Gather", self._dense(module, path), ids)
        blocks = self._blocks(module, path)
        codes, scales, zeros = self._tensors(blocks, path)
        rows = self._halves(self.op("Gather", codes, ids), blocks.bits)
        shape = self.ints(0, 0, blocks.scales.shape[1], blocks.block)
        rows = self.op("Reshape", self._float(rows), shape)
        zero = self.number(2.0 ** (blocks.bits - 1))
        if zeros is not None:
            zero = self.op("Unsqueeze", self._float(self._marks(blocks, zeros, ids)), self.ints(-1))
        scale = self.op("Unsqueeze", self.op("Gather", scales, ids), self.ints(-1))
        flat = self.op("Reshape", self.op("Mul", self.op("Sub", rows, zero), scale), self.ints(0, 0, -1))
        return self.op("Slice", flat, self.ints(0), self.ints(blocks.inputs), self.ints(-1))

    def _marks(self, blocks: Blocks, zeros: str, ids: str) -> str:
        """Unpack the zero points of the rows that were read, uint8 [*, blocks]."""
        found = self._halves(self.op("Gather", zeros, ids), blocks.bits)
        return self.op("Slice", found, self.ints(0), self.ints(blocks.scales.shape[1]), self.ints(-1))

    def _halves(self, packed: str, bits: int) -> str:
        """Return one code a byte from bytes of two, the low half first: the last axis gets twice as long."""
        if bits == 8:
            return packed
        low = self.op("BitwiseAnd", packed, self.constant(np.uint8(15)))
        high = self.op("BitShift", packed, self.constant(np.uint8(4)), direction="RIGHT")
        both = [self.op("Unsqueeze", one, self.ints(-1)) for one in (low, high)]
        pairs = self.op("Concat", *both, axis=-1)
        whole = self.op("Shape", packed)
        lead = self.op("Slice", whole, self.ints(0), self.ints(-1), self.ints(0))
        return self.op("Reshape", pairs, self.op("Concat", lead, self.ints(-1), axis=0))

    def _float(self, value: str) -> str:
        from onnx import TensorProto

        return self.op("Cast", value, to=TensorProto.FLOAT)

    def _product(self, blocks: Blocks, inputs: str, path: str) -> str:
        codes, scales, zeros = self._tensors(blocks, path)
        self.packed.append(path)
        return self.op(
            "MatMulNBits",
            inputs,
            codes,
            scales,
            *([zeros] if zeros else []),
            domain=MICROSOFT,
            K=blocks.inputs,
            N=blocks.outputs,
            bits=blocks.bits,
            block_size=blocks.block,
            accuracy_level=self._accuracy,
        )

    def _tensors(self, blocks: Blocks, path: str) -> tuple[str, str, str | None]:
        """Return the constants of a packed weight; a head that shares the codes of a table shares them here too."""
        names = self._known.get(id(blocks))
        if names is None:
            zeros = None if blocks.zeros is None else self.constant(blocks.zeros, f"{path}.zero_points")
            names = self.constant(blocks.codes, f"{path}.codes"), self.constant(blocks.scales, f"{path}.scales"), zeros
            self._known[id(blocks)] = names
        found: tuple[str, str, str | None] = names
        return found

    def _blocks(self, module: Any, path: str) -> Blocks:
        key = id(module.codes)
        if key not in self._known:
            weight = coded(module)
            assert weight is not None
            self._known[key] = blocks_of(weight, path)
        blocks: Blocks = self._known[key]
        return blocks

    def _dense(self, module: Any, path: str) -> str:
        """Return the constant [out, in] of a plain or decoded weight, one for all modules that share it."""
        key = id(module if (kept := held(module)) is None else kept)
        if key not in self._known:
            weight = dense_weight(module, path, "ONNX") if isinstance(module, StoredModule) else module.weight
            self._known[key] = self.constant(_array(weight), f"{path}.weight")
        name: str = self._known[key]
        return name

    def norm(self, module: nn.Module, path: str, inputs: str, epsilon: float) -> str:
        """Add a root mean square norm over the last axis."""
        squared = self.op("ReduceMean", self.op("Mul", inputs, inputs), self.ints(-1), keepdims=1)
        scale = self.op("Sqrt", self.op("Add", squared, self.number(epsilon)))
        weight: Any = module.weight
        return self.op("Mul", self.op("Div", inputs, scale), self.constant(_array(weight), f"{path}.weight"))


def _array(value: Tensor) -> np.ndarray:
    return value.detach().to(torch.float32).contiguous().numpy()
