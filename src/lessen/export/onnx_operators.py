"""Operators that torch's ONNX exporter lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ONNX of torch operators that the exporter does not know. Needs onnxscript."""
    from onnxscript import opset20

    op: Any = opset20  # the functions below are traced, not run: their arguments are values of the graph

    def bucketize(values: Any, boundaries: Any, out_int32: bool = False, right: bool = False) -> Any:
        """Count the boundaries below (or at) each value: there is one a field, so that a search would not pay."""
        wide = op.Unsqueeze(values, op.Constant(value_ints=[-1]))
        above = op.GreaterOrEqual(wide, boundaries) if right else op.Greater(wide, boundaries)
        kind = 6 if out_int32 else 7  # int32, int64
        return op.ReduceSum(op.Cast(above, to=kind), op.Constant(value_ints=[-1]), keepdims=0)

    def int_mm(left: Any, right: Any) -> Any:
        """Multiply int8 by int8 into int32."""
        return op.MatMulInteger(left, right)

    return {torch.ops.aten.bucketize.Tensor: bucketize, torch.ops.aten._int_mm.default: int_mm}
