"""A language model as an ONNX graph that writes: keys and values go in and come out, packed layers stay packed.

input_ids                     int64 [batch, new]           the tokens that are new
attention_mask                int64 [batch, past + new]    0 where a row is padded, on its left
past_key_values.N.key, .value float32 [batch, kv heads, past, head_dim]; past is 0 at first
logits                        float32 [batch, new, vocabulary]
present.N.key, .value         the same with the new tokens behind

The names are those that onnxruntime-genai and optimum use. Blocks are read from the model's parts; families whose
blocks are not exactly the line below are refused.

    x ─ norm ─ q k v ─ rotate q, k ─ append k, v ─ attend ─ o ─ + x ─ norm ─ act(gate) * up ─ down ─ +
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lessen.architectures.find import find_parts
from lessen.architectures.parts import Attention, Block, Part, Parts
from lessen.errors import ConfigError, GateFailed, MissingExtraError
from lessen.export.codes import check_plain
from lessen.export.onnx_graph import IR_VERSION, MICROSOFT, OPSET, Graph
from lessen.files import atomic_write

KNOWN = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
"""Norm before each branch, halves rotated against each other, gated feed-forward, no factors on branches."""
STEADY = {"default", "linear", "llama3"}
"""Rotary scales that do not change with the length."""
LARGEST = 2_000_000_000
"""Bytes of tensors that one file of ONNX's format holds."""
TOLERANCE = 1e-4
"""Share of the largest logit by which a graph in float32 may differ."""
MASKED = -1e9


@dataclass(frozen=True)
class Written:
    """What a file holds."""

    bytes: int
    packed: int
    """Layers that stay packed."""
    difference: float
    """Largest difference of a logit to the model's, over a prompt and tokens after it."""
    share: float
    """The same as a share of the largest logit."""


def writes_decoder(model: Any) -> bool:
    """Tell whether a model is one that `export_decoder` knows."""
    kinds = {type(module).__name__ for module in model.modules()}
    return bool(kinds & KNOWN) and getattr(model, "get_output_embeddings", lambda: None)() is not None


def export_decoder(model: Any, path: Path, *, accuracy_level: int = 0) -> Written:
    """Write a causal language model to `path`; all or nothing.

    Args:
        model: of a Llama-like family, plain or with packed layers; not changed.
        accuracy_level: of MatMulNBits: 0 multiplies in float32; 4 rounds activations to 8 bits, which is quicker and
            changes logits, so that no parity is asked of it.

    Raises:
        ConfigError: another family, positions or a stored form that the graph cannot say; which, and what to do.
        GateFailed: the graph's logits differ from the model's by more than 1e-4 of the largest.
        MissingExtraError: onnx or onnxruntime is not installed.
        OutputError: the file cannot be written.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("onnx", error.name or "onnx", "exporting to ONNX") from error
    if not writes_decoder(model):
        raise ConfigError(
            f"a {type(model).__name__} has no decoding graph here; known blocks: {', '.join(sorted(KNOWN))}; "
            "--to hf writes any family"
        )
    check_plain(model, "an ONNX graph")
    if accuracy_level != 4:
        _check_float(model)
    parts = find_parts(model, "decoder")
    graph = Graph(accuracy_level)
    proto = _model(graph, model, parts)
    total = sum(one.nbytes for one in graph.constants.values())
    if total > LARGEST:
        raise ConfigError(
            f"the tensors take {total} bytes, and an ONNX file holds {LARGEST}; compress to fewer bits first"
        )
    raw = proto.SerializeToString()
    onnx.checker.check_model(raw)
    difference, share = _apart(model, OnnxDecoder(raw))
    if accuracy_level != 4 and not share <= TOLERANCE:
        raise GateFailed(f"the ONNX graph differs by {share:.1e} of the largest logit; not written")
    atomic_write(path, raw)
    return Written(len(raw), len(graph.packed), difference, share)


def _check_float(model: Any) -> None:
    """Refuse layers that round their inputs, which a graph in float32 does not. Raises ConfigError."""
    for path, module in model.named_modules():
        if getattr(module, "activations", "float") != "float":
            raise ConfigError(
                f"{path} is a {module.kind} that rounds its inputs to int8, and the graph multiplies in float32; "
                "compress with activations=float, or export with --accuracy-level 4, which rounds them too"
            )


def _apart(model: Any, decoder: OnnxDecoder) -> tuple[float, float]:
    """Compare logits of two rows of made-up tokens, read at once and then one after another."""
    size = model.config.vocab_size
    ids = torch.arange(14).mul(7).add(3).remainder(size).view(2, 7)
    with torch.no_grad():
        wanted = model(input_ids=ids).logits.float().numpy()
    first = decoder.step(ids[:, :5].numpy(), decoder.empty(2))
    second = decoder.step(ids[:, 5:6].numpy(), first[1])
    third = decoder.step(ids[:, 6:].numpy(), second[1])
    found = np.concatenate([first[0], second[0], third[0]], axis=1)
    difference = float(np.abs(found - wanted).max())
    return difference, difference / float(np.abs(wanted).max())


class OnnxDecoder:
    """A written graph under onnxruntime: one thread, greedy."""

    def __init__(self, source: Path | bytes, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        given = source if isinstance(source, bytes) else str(source)
        self.session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        self._past = [one for one in self.session.get_inputs() if one.name.startswith("past")]

    def empty(self, batch: int) -> dict[str, np.ndarray]:
        """Return keys and values of no tokens."""
        return {one.name: np.zeros((batch, one.shape[1], 0, one.shape[3]), np.float32) for one in self._past}

    def step(self, ids: np.ndarray, past: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return logits of new tokens int64 [batch, new], and the keys and values with them behind."""
        length = next(iter(past.values())).shape[2] + ids.shape[1]
        feeds = {"input_ids": ids, "attention_mask": np.ones((len(ids), length), np.int64), **past}
        logits, *present = self.session.run(None, feeds)
        return logits, dict(zip(past, present, strict=True))

    def greedy(self, ids: list[int], count: int, ends: frozenset[int] = frozenset()) -> list[int]:
        """Return the tokens that follow, at most `count`, the first of `ends` included."""
        emitted: list[int] = []
        fresh, past = np.array([ids], np.int64), self.empty(1)
        while len(emitted) < count and not (emitted and emitted[-1] in ends):
            logits, past = self.step(fresh, past)
            emitted.append(int(logits[0, -1].argmax()))
            fresh = np.array([emitted[-1:]], np.int64)
        return emitted


# -- the graph ------------------------------------------------------------------------------------------------------
def _model(graph: Graph, model: Any, parts: Parts) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    stack = parts.stack
    first = stack.blocks[0].attention
    if stack.embedding is None or stack.rotary is None or stack.final_norm is None or first is None:
        raise ConfigError("the model has no embedding, rotary positions or last norm that can be told")
    _check_rotary(model.config)
    places = _places(graph)
    turn = _rotary(graph, stack.rotary.module, places["positions"])
    masks: dict[int | None, str] = {}
    hidden = graph.table(stack.embedding.module, stack.embedding.path, "input_ids")
    for block in stack.blocks:
        window = _window(model.config, block.index)
        if window not in masks:
            masks[window] = _mask(graph, places, window)
        hidden = _block(graph, block, hidden, turn, masks[window])
    hidden = _norm(graph, stack.final_norm, hidden)
    head = model.get_output_embeddings()
    path = next(name for name, module in model.named_modules() if module is head)
    logits = graph.linear(head, path, hidden)
    graph.op("Identity", logits, name="logits")
    shape: list[str | int] = ["batch", first.kv_heads, "past", first.head_dim]
    grown: list[str | int] = ["batch", first.kv_heads, "total", first.head_dim]
    names = [f"{index}.{kind}" for index in range(len(stack.blocks)) for kind in ("key", "value")]
    whole, real = TensorProto.INT64, TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("input_ids", whole, ["batch", "new"]),
        helper.make_tensor_value_info("attention_mask", whole, ["batch", "total"]),
        *(helper.make_tensor_value_info(f"past_key_values.{name}", real, shape) for name in names),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", real, ["batch", "new", int(model.config.vocab_size)]),
        *(helper.make_tensor_value_info(f"present.{name}", real, grown) for name in names),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in graph.constants.items()]
    made = helper.make_graph(graph.nodes, "decoder", inputs, outputs, constants)
    sets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(made, opset_imports=sets, ir_version=IR_VERSION, producer_name="lessen")


def _check_rotary(config: Any) -> None:
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in STEADY:
        raise ConfigError(f"rotary positions of type {kind!r} change with the length, which the graph does not say")


def _window(config: Any, index: int) -> int | None:
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    inside = kinds[index] == "sliding_attention" if kinds else getattr(config, "use_sliding_window", True)
    return int(window) if window is not None and inside else None


def _places(graph: Graph) -> dict[str, str]:
    """Add what masks and positions need: lengths, and the position of each new token, int64 [batch, new]."""
    new = graph.op("Shape", "input_ids", start=1, end=2)
    total = graph.op("Shape", "attention_mask", start=1, end=2)
    past = graph.op("Sub", total, new)
    counted = graph.op("Sub", graph.op("CumSum", "attention_mask", graph.constant(np.int64(1))), graph.ints(1))
    counted = graph.op("Max", counted, graph.ints(0))
    positions = graph.op("Slice", counted, past, total, graph.ints(1))
    return {"past": past, "total": total, "positions": positions}


def _rotary(graph: Graph, module: Any, positions: str) -> tuple[str, str]:
    """Add cosine and sine float32 [batch, 1, new, head_dim]."""
    frequencies: Tensor = module.inv_freq.float()
    wide = graph.op("Unsqueeze", graph._float(positions), graph.ints(1, 3))
    angles = graph.op("Mul", wide, graph.constant(frequencies.numpy(), "rotary.frequencies"))
    both = graph.op("Concat", angles, angles, axis=-1)
    factor = graph.number(float(getattr(module, "attention_scaling", 1.0)))
    return graph.op("Mul", graph.op("Cos", both), factor), graph.op("Mul", graph.op("Sin", both), factor)


def _mask(graph: Graph, places: dict[str, str], window: int | None) -> str:
    """Add what is added to scores, float32 [batch, 1, 1, new, total]: 0, or a large negative number."""
    start, end = (graph.op("Squeeze", places[name]) for name in ("past", "total"))
    rows = graph.op("Unsqueeze", graph.op("Range", start, end, graph.constant(np.int64(1))), graph.ints(1))
    columns = graph.op("Range", graph.constant(np.int64(0)), end, graph.constant(np.int64(1)))
    allowed = graph.op("LessOrEqual", columns, rows)
    if window is not None:
        near = graph.op("Greater", columns, graph.op("Sub", rows, graph.ints(window)))
        allowed = graph.op("And", allowed, near)
    there = graph.op("Equal", "attention_mask", graph.ints(1))
    there = graph.op("Unsqueeze", there, graph.ints(1, 2, 3))
    return graph.op("Where", graph.op("And", allowed, there), graph.number(0.0), graph.number(MASKED))


def _norm(graph: Graph, part: Part, inputs: str) -> str:
    plain = isinstance(part.module, nn.RMSNorm)
    epsilon = part.module.eps if plain else getattr(part.module, "variance_epsilon", None)
    if epsilon is None:
        raise ConfigError(f"{part.path} is no root mean square norm, which the graph writes")
    return graph.norm(part.module, part.path, inputs, float(epsilon))


def _block(graph: Graph, block: Block, hidden: str, turn: tuple[str, str], mask: str) -> str:
    attention, layer, norms = block.attention, block.feed_forward, block.norms
    if attention is None or layer is None or layer.gate is None or layer.fused or attention.fused:
        raise ConfigError(f"{block.path} has no separate projections and gate, which the graph writes")
    if norms.before_attention is None or norms.before_feed_forward is None:
        raise ConfigError(f"{block.path} has no norms before its layers")
    seen = _attended(graph, block.index, attention, _norm(graph, norms.before_attention, hidden), turn, mask)
    hidden = graph.op("Add", hidden, seen)
    normed = _norm(graph, norms.before_feed_forward, hidden)
    gate = graph.linear(layer.gate.module, layer.gate.path, normed)
    up = graph.linear(layer.up.module, layer.up.path, normed)
    gated = graph.op("Mul", _activated(graph, block, gate), up)
    return graph.op("Add", hidden, graph.linear(layer.down.module, layer.down.path, gated))


def _activated(graph: Graph, block: Block, gate: str) -> str:
    mlp: Any = block.feed_forward and block.module.get_submodule(block.feed_forward.path[len(block.path) + 1 :])
    kind = type(mlp.act_fn).__name__
    if kind not in ("SiLUActivation", "SiLU"):
        raise ConfigError(f"{block.path} activates with {kind}; the graph writes SiLU")
    return graph.op("Mul", gate, graph.op("Sigmoid", gate))


def _attended(graph: Graph, index: int, attention: Attention, normed: str, turn: tuple[str, str], mask: str) -> str:
    """Add one attention layer; heads that share keys are rows of one product, so that keys are never copied."""
    own: Any = attention.module
    heads, shared, width = attention.heads, attention.kv_heads, attention.head_dim
    query = _split(graph, attention.query, attention.query_norm, normed, heads, width)
    key = _split(graph, attention.key, attention.key_norm, normed, shared, width)
    value = _split(graph, attention.value, None, normed, shared, width)
    query, key = (_turned(graph, one, turn, width) for one in (query, key))
    past = [f"past_key_values.{index}.{kind}" for kind in ("key", "value")]
    key = graph.op("Concat", past[0], key, axis=2, name=f"present.{index}.key")
    value = graph.op("Concat", past[1], value, axis=2, name=f"present.{index}.value")
    groups = heads // shared
    rows = graph.op("Reshape", query, graph.ints(0, shared, -1, width))  # [batch, kv heads, groups * new, head_dim]
    scores = graph.op("MatMul", rows, graph.op("Transpose", key, perm=[0, 1, 3, 2]))
    scores = graph.op("Mul", scores, graph.number(float(own.scaling)))
    new, total = graph.op("Shape", query, start=2, end=3), graph.op("Shape", key, start=2, end=3)
    apart = graph.op("Concat", graph.ints(0, shared, groups), new, total, axis=0)
    weights = graph.op("Softmax", graph.op("Add", graph.op("Reshape", scores, apart), mask), axis=-1)
    together = graph.op("Concat", graph.ints(0, shared, -1), total, axis=0)
    seen = graph.op("MatMul", graph.op("Reshape", weights, together), value)
    whole = graph.op("Concat", graph.ints(0, heads), new, graph.ints(width), axis=0)
    flat = graph.op("Transpose", graph.op("Reshape", seen, whole), perm=[0, 2, 1, 3])
    return graph.linear(
        attention.output.module, attention.output.path, graph.op("Reshape", flat, graph.ints(0, 0, heads * width))
    )


def _split(graph: Graph, part: Part, norm: Part | None, inputs: str, heads: int, width: int) -> str:
    """Add a projection cut into heads, float32 [batch, heads, new, width]."""
    made = graph.op("Reshape", graph.linear(part.module, part.path, inputs), graph.ints(0, 0, heads, width))
    if norm is not None:
        made = _norm(graph, norm, made)
    return graph.op("Transpose", made, perm=[0, 2, 1, 3])


def _turned(graph: Graph, states: str, turn: tuple[str, str], width: int) -> str:
    first, second = graph.ops("Split", states, graph.ints(width // 2, width // 2), outputs=2, axis=-1)
    crossed = graph.op("Concat", graph.op("Neg", second), first, axis=-1)
    return graph.op("Add", graph.op("Mul", states, turn[0]), graph.op("Mul", crossed, turn[1]))
