"""Export of a model to ONNX: any batch size, compact tables as bytes that the graph unpacks, parity checked."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lessen.errors import ConfigError, EnvironmentFault, GateFailed, MissingExtraError, TaskError
from lessen.export.codes import check_traced
from lessen.export.onnx_batch import dimensions, examples, first_examples
from lessen.export.onnx_forms import ROUNDED_AGAIN, exportable
from lessen.export.onnx_operators import translations
from lessen.export.onnx_sparse import Spread
from lessen.files import atomic_write
from lessen.task import call_model

SMALL = 64
"""Size of a constant that the graph of a sparse model may compute ahead."""
TOLERANCE = 1e-5
OPSET = 20
TRACED_ROWS = 5
ONLY_INPUT = "inputs"
"""Name of the graph's input when the model takes one tensor."""

Named = Mapping[str, Tensor] | Tensor
Inputs = Named | tuple[Tensor, ...]


def export_onnx(model: nn.Module, inputs: Inputs, path: Path) -> float:
    """Write `model` to `path` and return the largest difference to torch under onnxruntime.

    Args:
        model: plain, or with stored modules that have an ONNX form (see `onnx_forms`); it is not changed.
        inputs: one batch as the task gives it: a dict such as `ids` int32 [B, columns] and `numeric` [B, n], or one
            tensor, or a tuple of positional ones, which the graph calls as the model's forward does. The first axis of
            every input is free in the graph. All rows, and one row alone, are compared.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ConfigError: a stored module has no ONNX form, or a patch acts on a cache.
        EnvironmentFault: the model holds an operation that cannot be exported.
        GateFailed: the exported graph differs by more than 1e-5 of the largest output (at least 1) from the model;
            nothing is written.
    """
    check_traced(model, "an ONNX graph")
    batch = named(model, inputs)
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("onnx", error.name or "onnx", "exporting to ONNX") from error
    raw = _graph(exportable(copy.deepcopy(model)).eval().requires_grad_(False), batch)
    options = onnxruntime.SessionOptions()
    if any(isinstance(module, ROUNDED_AGAIN) for module in model.modules()):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = _session(onnxruntime, raw, options)
    difference = share = 0.0
    for rows in (_rows(batch), 1):  # other batch sizes than the traced one prove that it is free
        part = first_rows(batch, rows)
        with torch.no_grad():
            answer = call_model(model.eval(), part)
        expected = answer.double().numpy()
        found = _answer(session, feeds(part)).astype(np.float64)
        apart = float(np.abs(found.reshape(expected.shape) - expected).max())
        difference = max(difference, apart)
        share = max(share, apart / max(1.0, float(np.abs(expected).max())) / _step(answer.dtype))
    if not share <= 1.0:
        raise GateFailed(
            f"the ONNX graph differs by {difference:.2e} from the model, over {TOLERANCE:.0e} of its outputs; "
            "not written"
        )
    atomic_write(path, raw)
    return difference


def _session(onnxruntime: Any, raw: bytes, options: Any) -> Any:
    """Return a session of a graph. Raises EnvironmentFault: onnxruntime has no form of one of its operations."""
    try:
        return onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        said = " ".join(str(error).split())[:300]
        raise EnvironmentFault(
            f"onnxruntime cannot run the graph; not written: {said}; where a dtype is at fault, such as bfloat16, "
            "export the model in float32 or float16"
        ) from error


def _answer(session: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Run a session. Raises GateFailed for what onnxruntime refuses, such as a batch size that is not free."""
    try:
        return np.asarray(session.run(None, batch)[0])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise GateFailed(f"the ONNX graph does not run; not written: {' '.join(str(error).split())[:300]}") from error


def _step(dtype: torch.dtype) -> float:
    """Return the difference that is allowed, as a share of the largest output: 1e-5, or what 16 bits resolve."""
    return max(TOLERANCE, 4 * torch.finfo(dtype).eps) if dtype.itemsize < 4 else TOLERANCE


def named(model: nn.Module, inputs: Inputs) -> Named:
    """Return a batch with positional inputs called by the names of the model's forward.

    Raises:
        ConfigError: the forward has no name for one of them.
    """
    if not isinstance(inputs, tuple):
        return inputs
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [one.name for one in inspect.signature(model.forward).parameters.values() if one.kind in kinds]
    if len(found) < len(inputs):
        raise ConfigError(
            f"{type(model).__name__}.forward names {len(found)} inputs and the task gives {len(inputs)}; let the task "
            "give a dictionary of tensors"
        )
    return dict(zip(found, inputs, strict=False))


def first_rows(inputs: Named, rows: int) -> Named:
    """Return the first `rows` examples of a batch, repeated where it has fewer."""
    if isinstance(inputs, Tensor):
        return inputs[torch.arange(rows) % len(inputs)]
    return first_examples(inputs, rows)


def feeds(inputs: Named) -> dict[str, np.ndarray]:
    """Return a batch as onnxruntime takes it."""
    called = {ONLY_INPUT: inputs} if isinstance(inputs, Tensor) else inputs
    return {name: value.numpy() for name, value in called.items()}


def _rows(inputs: Named) -> int:
    if isinstance(inputs, Tensor):
        return len(inputs)
    if not inputs or not all(isinstance(value, Tensor) and value.dim() for value in inputs.values()):
        raise TaskError("a model is exported with one tensor or a dict of tensors as input")
    return examples(inputs)


def _graph(model: nn.Module, inputs: Named) -> bytes:
    part = first_rows(inputs, TRACED_ROWS)
    names = [ONLY_INPUT] if isinstance(part, Tensor) else list(part)
    arguments, keywords = ((part,), {}) if isinstance(part, Tensor) else ((), dict(part))
    batch = {0: torch.export.Dim("batch", min=1)}
    spread = any(isinstance(module, Spread) for module in model.modules())
    shapes: Any = (batch,) if isinstance(part, Tensor) else dimensions(part)
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _traced(model, arguments, keywords, shapes),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=names,
                output_names=["output"],
                custom_translation_table=translations(),
                optimize=not spread,
            )
    except Exception as error:
        raise EnvironmentFault(f"the model cannot be exported to ONNX: {_reason(error)}") from error
    assert program is not None
    if spread:  # only what is small is computed ahead: sparse weights stay sparse in the file
        from onnxscript.optimizer import optimize_ir

        optimize_ir(program.model, input_size_limit=SMALL, output_size_limit=SMALL)
    buffer = io.BytesIO()
    import onnx

    proto = program.model_proto
    for node in proto.graph.node:  # where in Python each operation came from: as many bytes as a small model has
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    onnx.save_model(proto, buffer)
    return buffer.getvalue()


def _traced(model: nn.Module, arguments: Any, keywords: Any, shapes: Any) -> Any:
    """Return torch's graph of the model; the second way of tracing knows more Python, such as the length of a batch."""
    try:
        return torch.export.export(model, arguments, keywords, dynamic_shapes=shapes, strict=False)
    except Exception as first:
        try:
            return torch.export.export(model, arguments, keywords, dynamic_shapes=shapes, strict=True)
        except Exception:
            raise first from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's exporter from writing the whole graph to standard error when it fails."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def _reason(error: BaseException) -> str:
    """Return the first line that says something, of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip()[:300] if lines else type(error).__name__


def serve(path: Path, threads: int = 1) -> Callable[[Any], np.ndarray]:
    """Return a function of a batch that runs the file under onnxruntime, as a server worker would hold it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: np.asarray(session.run(None, feeds(inputs))[0])
