"""Reading one Transformer block: which layers are attention, which feed-forward, and what the norms belong to.

Shapes decide wherever they can: the output projection is what brings heads back to the width, `down` what brings
hidden units back, a fused projection is one as wide as all three. Names decide between queries, keys and values,
between gate and up, and how the rows of a fused projection lie; the tables below are all the names there are.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from lessen.architectures.norms import KEY_NORMS, QUERY_NORMS, is_cross, is_norm, read_norms
from lessen.architectures.parts import Attention, Block, FeedForward, Part, linear_sizes
from lessen.errors import InputError

QUERY = {"q_proj", "query", "q_lin", "q", "query_proj", "to_q", "wq"}
KEY = {"k_proj", "key", "k_lin", "k", "key_proj", "to_k", "wk"}
VALUE = {"v_proj", "value", "v_lin", "v", "value_proj", "to_v", "wv"}
FUSED = {"c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv", "qkv_lin", "in_proj"}
GROUPED_NAMES = {"query_key_value"}
GROUPED_CLASSES = {"GPTBigCodeAttention"}
"""Fused projections whose rows lie [group, queries of the group + key + value, head_dim]."""
UNREADABLE = {
    "CodeGenAttention": "its fused projection is split over four partitions",
    "q_a_proj": "latent attention has no key and value heads of its own",
    "kv_a_proj_with_mqa": "latent attention has no key and value heads of its own",
}
DOWN = {
    "down_proj", "fc2", "c_proj", "lin2", "dense_4h_to_h", "wo", "Wo", "fc_out", "ffn_output", "linear2", "w2",
    "weights_out", "output",
}  # fmt: skip
GATE = {"gate_proj", "wi_0", "w1", "gate", "fc1_g", "linear_v"}
CAUSAL_BY_NAME = ("Bloom", "Mpt")
"""Attention classes that are causal without saying `is_causal`."""


def has_attention(module: nn.Module) -> bool:
    """Tell whether a module holds projections of queries, keys and values at any depth."""
    return bool(_groups(_linears(module, ""))) or any(isinstance(m, nn.MultiheadAttention) for m in module.modules())


def read_block(module: nn.Module, path: str, index: int, normed: bool) -> Block:
    """Return the parts of one block.

    Args:
        normed: whether the stack ends in a norm of its own, as stacks do whose blocks norm what they read.

    Raises:
        InputError: attention or feed-forward cannot be told apart; names the linear layers found.
    """
    linears = _linears(module, path)
    attentions = [_native(m, p) for p, m in _named(module, path) if isinstance(m, nn.MultiheadAttention)]
    attentions += [_attention(module, path, parent, names, linears) for parent, names in _groups(linears).items()]
    used = {p.path for a in attentions for p in (a.query, a.key, a.value, a.output)}
    left = {p: m for p, m in linears.items() if p not in used and not _inside(p, attentions)}
    width = attentions[0].query.inputs if attentions else 0
    feed_forward = _feed_forward(path, left, width)
    experts = next((Part(p, m) for p, m in _named(module, path) if _packed_experts(m)), None)
    own = next((a for a in attentions if not is_cross(a.path[len(path) :])), None)
    cross = next((a for a in attentions if is_cross(a.path[len(path) :])), None)
    norms = read_norms(module, path, own, cross, normed)
    return Block(index, path, module, own, cross, feed_forward, experts, norms)


# -- attention ------------------------------------------------------------------------------------------------------
def _named(module: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    return [(f"{path}.{inner}".strip("."), child) for inner, child in module.named_modules() if inner]


def _linears(module: nn.Module, path: str) -> dict[str, Any]:
    """Return the outermost linear layers by path; what a stored layer holds inside is its own affair."""
    found: dict[str, Any] = {}
    for full, child in _named(module, path):
        if linear_sizes(child)[0] and not any(full.startswith(f"{outer}.") for outer in found):
            found[full] = child
    return found


def _groups(linears: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return, for each module that holds the projections of one attention, their paths by role."""
    groups: dict[str, dict[str, str]] = {}
    for path in linears:
        parent, _, name = path.rpartition(".")
        for role, names in (("query", QUERY), ("key", KEY), ("value", VALUE), ("fused", FUSED)):
            if name in names:
                groups.setdefault(parent, {})[role] = path
    return {
        parent: roles for parent, roles in groups.items() if {"query", "key", "value"} <= set(roles) or "fused" in roles
    }


def _attention(
    block: nn.Module, block_path: str, parent: str, roles: dict[str, str], linears: dict[str, Any]
) -> Attention:
    inner = parent[len(block_path) :].strip(".")
    module = block.get_submodule(inner) if inner else block
    _refuse_unreadable(module, parent, linears)
    fused = roles.get("fused")
    query, key, value = (
        Part(roles[r], linears[roles[r]]) if not fused else Part(fused, linears[fused])
        for r in ("query", "key", "value")
    )
    heads = _heads(module, parent)
    head_dim = _head_dim(module, query, heads, bool(fused))
    if not fused and query.outputs % head_dim == 0:
        heads = query.outputs // head_dim  # fewer than the configuration says where some were pruned
    kv_heads = _kv_heads(module, heads) if fused else max(1, key.outputs // head_dim)
    if fused and query.outputs != (heads + 2 * kv_heads) * head_dim:
        raise InputError(
            f"{query.path} has {query.outputs} outputs; {heads} heads and {kv_heads} key/value heads of {head_dim} "
            f"would need {(heads + 2 * kv_heads) * head_dim}"
        )
    if not fused and query.outputs != heads * head_dim:
        raise InputError(f"{query.path} has {query.outputs} outputs, which {heads} heads of {head_dim} do not fill")
    output = _output(parent, block_path, linears, set(roles.values()), heads * head_dim, query.inputs)
    named = query.path.rpartition(".")[2] in GROUPED_NAMES or type(module).__name__ in GROUPED_CLASSES
    grouped = fused is not None and named
    norms = [_child_norm(module, parent, names) for names in (QUERY_NORMS, KEY_NORMS)]
    return Attention(
        parent or block_path,
        module,
        query,
        key,
        value,
        output,
        heads,
        kv_heads,
        head_dim,
        grouped,
        _causal(module),
        *norms,
    )


def _native(module: nn.MultiheadAttention, path: str) -> Attention:
    """Return torch's own attention, whose three projections are one parameter."""
    if module.in_proj_weight is None:
        raise InputError(f"{path}: a MultiheadAttention with keys or values of another width (kdim, vdim) is not known")
    fused = Part(path, module, "in_proj_weight", "in_proj_bias")
    output = Part(f"{path}.out_proj", module.out_proj)
    heads = int(module.num_heads)
    return Attention(path, module, fused, fused, fused, output, heads, heads, int(module.head_dim))


def _refuse_unreadable(module: nn.Module, parent: str, linears: dict[str, Any]) -> None:
    names = {path.rpartition(".")[2] for path in linears if path.startswith(f"{parent}.")}
    for name in (type(module).__name__, *sorted(names)):
        if name in UNREADABLE:
            raise InputError(f"{parent}: {type(module).__name__} ({name}) cannot be read: {UNREADABLE[name]}")


def _first(module: Any, names: tuple[str, ...]) -> int | None:
    """Return the first whole number among attributes of a module, then of its config."""
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _heads(module: nn.Module, path: str) -> int:
    names = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "encoder_attention_heads")
    heads = _first(module, names)
    if heads is None:
        raise InputError(f"{path}: {type(module).__name__} does not say how many heads it has ({', '.join(names[:4])})")
    return heads


def _head_dim(module: nn.Module, query: Part, heads: int, fused: bool) -> int:
    own = _first(module, ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size"))
    if own is not None:
        return own
    return (query.inputs if fused else query.outputs) // heads


def _kv_heads(module: nn.Module, heads: int) -> int:
    return _first(module, ("num_kv_heads", "num_key_value_heads", "kv_heads")) or heads


def _output(parent: str, block_path: str, linears: dict[str, Any], used: set[str], heads: int, width: int) -> Part:
    """Return the projection from joined heads to the width, looked for in ever larger surroundings."""
    scope = parent
    while True:
        inside = [p for p in linears if p not in used and (p.startswith(f"{scope}.") or not scope)]
        fits = [p for p in inside if linear_sizes(linears[p]) == (heads, width)]
        if fits:
            return Part(fits[0], linears[fits[0]])
        if scope == block_path or not scope:
            raise InputError(
                f"{parent}: no output projection from {heads} to {width} among {', '.join(inside) or 'nothing'}"
            )
        scope = scope.rpartition(".")[0]


def _causal(module: nn.Module) -> bool:
    said = getattr(module, "is_causal", None)
    if isinstance(said, bool):
        return said
    return type(module).__name__.startswith(CAUSAL_BY_NAME) or bool(getattr(module, "is_decoder", False))


def _inside(path: str, attentions: list[Attention]) -> bool:
    return any(path.startswith(f"{attention.path}.") for attention in attentions)


def _child_norm(module: nn.Module, path: str, names: tuple[str, ...]) -> Part | None:
    found = ((name, getattr(module, name, None)) for name in names)
    return next(
        (Part(f"{path}.{name}", norm) for name, norm in found if isinstance(norm, nn.Module) and is_norm(norm)), None
    )


# -- feed-forward ---------------------------------------------------------------------------------------------------
def _feed_forward(path: str, linears: dict[str, Any], width: int) -> FeedForward | None:
    """Return the feed-forward layer among the linear layers that are not attention's, or None."""
    sizes = {p: linear_sizes(m) for p, m in linears.items()}
    downs = [p for p in sizes if _is_down(p, sizes, width)]
    for down in downs:
        hidden = sizes[down][0]
        ups = [p for p in sizes if p != down and sizes[p] in ((width, hidden), (width, 2 * hidden)) and p not in downs]
        if not ups:
            continue
        fused = [p for p in ups if sizes[p][1] == 2 * hidden]
        gates = [p for p in ups if p.rpartition(".")[2] in GATE]
        plain = [p for p in ups if p not in gates and p not in fused]
        scope = down.rpartition(".")[0]
        if fused and not plain:
            part = Part(fused[0], linears[fused[0]])
            return FeedForward(scope, part, part, Part(down, linears[down]), hidden)
        if len(plain) == 1 and len(gates) <= 1:
            gate = Part(gates[0], linears[gates[0]]) if gates else None
            return FeedForward(scope, Part(plain[0], linears[plain[0]]), gate, Part(down, linears[down]), hidden)
        raise InputError(
            f"{path}: cannot tell gate from up among {', '.join(ups)}; known names of gates: {', '.join(sorted(GATE))}"
        )
    return None


def _is_down(path: str, sizes: dict[str, tuple[int, int]], width: int) -> bool:
    inputs, outputs = sizes[path]
    if outputs != width:
        return False
    name = path.rpartition(".")[2]
    parent = path.rpartition(".")[0].rpartition(".")[2]
    if inputs != width:
        return True
    return name in DOWN or (name == "dense" and parent == "output")


def _packed_experts(module: nn.Module) -> bool:
    return any(parameter.dim() == 3 for parameter in module.parameters(recurse=False))
