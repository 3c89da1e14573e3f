"""The sparse int8 product against dense int8 ones: time of a layer, inside the cache and beyond it, one row and many.

    python -m benchmarks.sparsity.kernel [--rounds 9] [--only "2:4"]    # writes benchmarks/results/sparsity_kernel.json
    python -m benchmarks.sparsity.kernel --machine emerald_rapids       # sparsity_kernel_emerald_rapids.json

One thread. Every layer takes float32 rows and gives float32 rows; weights are int8 with a scale for each output, inputs
are rounded row by row (by tensor in torch's fused layer and onnxruntime). Peers, all dense: `Int8Linear` (which is
torch._int_mm), our panels, torch's `linear_dynamic`, onnxruntime's DynamicQuantizeLinear and MatMulInteger. Calls take
turns and are counted in processor time; a round gives one ratio to each peer, and told are the median of the rounds,
the lowest and the highest. `best` is the quickest peer of the case by its median. `equal`: outputs are those of
`Int8Linear` with equal codes, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.distil.results import write
from lessen.sparsity.pattern import Pattern
from lessen.stored.kernels import sparse_products
from lessen.stored.linears.int8_linear import Int8Linear
from lessen.stored.linears.sparse import SparseLinear
from lessen.stored.linears.sparse_matrix import SparseMatrix

RESULT = Path("benchmarks/results/sparsity_kernel.json")
CASES = [(side, side, text) for side in (8192, 6144, 17408) for text in ("50 %", "25 %")] + [
    (2048, 2048, text) for text in ("50 %", "25 %", "1:4", "1:8", "1:16", "1:32")
]
"""Outputs, inputs and pattern: dense int8 of 64 and 36 MB, beyond the 32 MB of Zen 4's cache, of 303 MB, beyond the 260
that Emerald Rapids shares, and of 4 MB, inside."""
ROWS = {2048: (1, 4, 16, 256), 6144: (1, 4, 16), 8192: (1, 4, 16), 17408: (1, 4)}


def layers(outputs: int, inputs: int, text: str) -> tuple[SparseLinear, Int8Linear, float]:
    torch.manual_seed(0)
    dense: nn.Linear = nn.Linear(inputs, outputs)
    pattern = Pattern.parse(text) if ":" in text else Pattern(float(text.split()[0]) / 100)
    if pattern.m:
        mask = pattern.mask(dense.weight.detach().abs())
    else:
        mask = torch.rand(outputs, inputs) < pattern.density
    matrix = SparseMatrix.of(dense.weight, mask, "int8", pattern.n, pattern.m)
    made = SparseLinear.around(dense, matrix, "int8")
    twin = Int8Linear(inputs, outputs)
    twin.codes.copy_(matrix.held(slice(0, outputs)))
    assert matrix.scales is not None
    twin.scales.copy_(matrix.scales)
    twin.bias.copy_(dense.bias)
    return made, twin, sum(t.nbytes for t in matrix.buffers()) / twin.codes.nbytes


def runtime(layer: Int8Linear) -> Callable[[Tensor], Any]:
    """Return the layer under onnxruntime: inputs rounded by tensor to uint8, MatMulInteger, scales, bias."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    outputs, inputs = layer.codes.shape
    values = {"w": layer.codes.t().contiguous(), "s": layer.scales, "b": layer.bias}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "step", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["step", "s"], ["scale"]),
        helper.make_node("Mul", ["wide", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "layer", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])],
        [numpy_helper.from_array(value.numpy(), name) for name, value in values.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda rows: session.run(None, {"x": rows.numpy()})


def timed(call: Callable[[], Any], least: float) -> float:
    """Return the processor seconds of a call: calls are repeated until `least` seconds have gone."""
    count, start = 0, time.process_time()
    while True:
        call()
        count += 1
        spent = time.process_time() - start
        if spent >= least:
            return spent / count


def case(outputs: int, inputs: int, text: str, rounds: int) -> list[dict[str, Any]]:
    sparse, dense, share = layers(outputs, inputs, text)
    panels = dense._held_operand()
    fused = Int8Linear(inputs, outputs, "tensor")
    fused.load_state_dict(dense.state_dict())
    served = runtime(dense)
    found = []
    for count in ROWS[outputs]:
        given = torch.randn(count, inputs)
        calls: dict[str, Callable[[], Any]] = {
            "sparse": lambda given=given: sparse(given), "Int8Linear": lambda given=given: dense(given),
            "panels": lambda given=given: panels.multiply(given), "linear_dynamic": lambda given=given: fused(given),
            "onnxruntime": lambda given=given: served(given),
        }  # fmt: skip
        equal = torch.equal(sparse(given), dense._by_row(given))
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call()
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(timed(call, 0.01))
        peers = [name for name in calls if name != "sparse"]
        medians = {name: statistics.median(values) for name, values in times.items()}
        best = min(peers, key=lambda name: medians[name])
        ratios = {n: sorted(a / b for a, b in zip(times[n], times["sparse"], strict=True)) for n in peers}
        row = {
            "outputs": outputs, "inputs": inputs, "pattern": text, "rows": count, "equal": equal,
            "stored of dense int8": share, "held of dense int8": sparse.packed_bytes() / dense.codes.nbytes,
            "load": os.getloadavg()[0],
            "microseconds": {name: 1e6 * value for name, value in medians.items()}, "best": best,
            "faster than": {n: [statistics.median(r), r[0], r[-1]] for n, r in ratios.items()},
        }  # fmt: skip
        found.append(row)
        middle, low, high = row["faster than"][best]
        print(
            f"{outputs} x {inputs} {text:5} {count:4} rows  {medians['sparse'] * 1e6:8.0f} us  {middle:5.2f} x {best} "
            f"[{low:.2f}, {high:.2f}]  stored {share:.3f}  equal {equal}  load {os.getloadavg()[0]:.1f}", flush=True,
        )  # fmt: skip
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", help="one pattern")
    parser.add_argument("--side", type=int, help="outputs and inputs of one size")
    parser.add_argument("--machine", help="name of a further machine, whose result has a file of its own")
    asked = parser.parse_args()
    result = RESULT if asked.machine is None else RESULT.with_stem(f"{RESULT.stem}_{asked.machine}")
    if not sparse_products.possible():
        raise SystemExit("this processor has no AVX-512 VBMI2, or the extra `kernels` is not installed")
    torch.set_num_threads(1)
    found = json.loads(result.read_text())["results"]["rows"] if result.exists() else []
    for outputs, inputs, text in CASES:
        if asked.only not in (None, text) or asked.side not in (None, outputs):
            continue
        others = [row for row in found if (row["outputs"], row["pattern"]) != (outputs, text)]
        found = [*others, *case(outputs, inputs, text, asked.rounds)]
        write(result, {"rounds": asked.rounds, "rows": found}, "python -m benchmarks.sparsity.kernel")


if __name__ == "__main__":
    main()
