"""Export of a click model to ONNX: any batch size, quantised tables as bytes that the graph unpacks, parity checked."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lessen.errors import EnvironmentFault, GateFailed, MissingExtraError
from lessen.files import atomic_write
from lessen.stored.quantized_embedding import QuantizedEmbedding

TOLERANCE = 1e-5
OPSET = 20


def export_onnx(model: nn.Module, inputs: dict[str, Tensor], path: Path) -> float:
    """Write `model` to `path` and return the largest difference to torch under onnxruntime.

    Args:
        model: a click model, plain or with quantised tables; it is not changed.
        inputs: one batch of at least two rows, as the task gives it: `ids` int32 [B, columns], `numeric` [B, n].

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        EnvironmentFault: the model holds an operation that cannot be exported.
        GateFailed: the exported graph differs by more than 1e-5 from the model; nothing is written.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("onnx", error.name or "onnx", "exporting to ONNX") from error
    exportable = replace_tables(copy.deepcopy(model)).eval()
    raw = _graph(exportable, inputs)
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    difference = 0.0
    rows = len(next(iter(inputs.values())))
    with torch.no_grad():
        for count in (rows, 1):  # another batch size than the traced one proves that it is free
            part = {name: value[:count] for name, value in inputs.items()}
            expected = model.eval()(**part).numpy()
            found = session.run(None, {name: value.numpy() for name, value in part.items()})[0]
            difference = max(difference, float(np.abs(found.reshape(expected.shape) - expected).max()))
    if not difference <= TOLERANCE:
        raise GateFailed(
            f"the ONNX graph differs by {difference:.2e} from the model, over {TOLERANCE:.0e}; not written"
        )
    atomic_write(path, raw)
    return difference


def _graph(model: nn.Module, inputs: dict[str, Tensor]) -> bytes:
    batch = torch.export.Dim("batch", min=1)
    shapes = {name: {0: batch} for name in inputs}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model, (), kwargs=inputs, dynamic_shapes=shapes, dynamo=True, opset_version=OPSET, verbose=False,
                input_names=list(inputs), output_names=["logit"],
            )  # fmt: skip
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvironmentFault(f"the model cannot be exported to ONNX: {reason[:300]}") from error
    assert program is not None
    buffer = io.BytesIO()
    import onnx

    onnx.save_model(program.model_proto, buffer)
    return buffer.getvalue()


class PackedRows(nn.Module):
    """A quantised table whose bytes are looked up and unpacked by plain operations that ONNX knows.

    `codes` uint8 [rows, bytes]: one value a byte, or two, low half first; `scale` and `bias` float [rows, 1].
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, table: QuantizedEmbedding) -> None:
        super().__init__()
        if table.bits not in (4, 8) or table.mode is not None:
            raise EnvironmentFault(f"a {table.bits}-bit table has no ONNX form; use 8 or 4 bits")
        self.bits, self.dim = table.bits, table.embedding_dim
        tail = 8 if table.bits == 8 else 4
        kind = torch.float32 if table.bits == 8 else torch.float16
        ends = table.packed[:, -tail:].contiguous().view(kind)
        self.register_buffer("codes", table.packed[:, :-tail].contiguous())
        self.register_buffer("scale", ends[:, :1].contiguous())
        self.register_buffer("bias", ends[:, 1:].contiguous())

    def forward(self, ids: Tensor) -> Tensor:
        """Return rows [*, dim] float32."""
        ids = ids.long()  # GatherND takes no int32
        codes = self.codes[ids]
        if self.bits == 4:
            codes = torch.stack([codes % 16, codes // 16], dim=-1).flatten(-2)[..., : self.dim]
        return codes.float() * self.scale[ids].float() + self.bias[ids].float()


def replace_tables(model: nn.Module) -> nn.Module:
    """Put `PackedRows` in the place of each quantised table, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, QuantizedEmbedding):
                setattr(parent, name, PackedRows(child))
    return model


def serve(path: Path) -> Any:
    """Return an onnxruntime session on one thread, as a server worker would hold it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
