"""Which norms of a block stand next to which layer, before or after it, on the branch or on the residual."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lessen.architectures.parts import Attention, Norms, Part

ON_RESIDUAL = {
    "LayerNorm",
    "sa_layer_norm",
    "output_layer_norm",
    "self_attn_layer_norm",
    "encoder_attn_layer_norm",
    "final_layer_norm",
    "full_layer_layer_norm",
}
"""Names under which a norm follows the residual, if nothing norms the output of the last block (BERT, BART)."""
CROSS = ("cross", "encoder_attn", "encdecattention", "multihead_attn")
QUERY_NORMS, KEY_NORMS = ("q_norm", "query_norm", "q_layernorm"), ("k_norm", "key_norm", "k_layernorm")


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a layer norm or an RMS norm: by class, or a class named so with a vector of weights."""
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return True
    weight = getattr(module, "weight", None)
    vector = weight is None or (isinstance(weight, Tensor) and weight.dim() == 1)
    return "Norm" in type(module).__name__ and not isinstance(module, nn.modules.batchnorm._BatchNorm) and vector


def is_cross(path: str) -> bool:
    """Tell whether a path inside a block belongs to attention that reads an encoder."""
    return any(word in path.lower() for word in CROSS)


def read_norms(module: nn.Module, path: str, own: Attention | None, cross: Attention | None, normed: bool) -> Norms:
    """Return the norms of a block; `normed` says whether the stack ends in a norm of its own."""
    if own is None:
        return Norms()
    width = own.query.inputs
    found = [
        Part(f"{path}.{inner}".strip("."), child)
        for inner, child in module.named_modules()
        if inner and is_norm(child) and _is_wide(child, width) and not _of_heads(inner)
    ]
    names = {part.path.rpartition(".")[2]: part for part in found}
    if "pre_feedforward_layernorm" in names:
        return Norms(
            names.get("input_layernorm"),
            names.get("post_attention_layernorm"),
            before_feed_forward=names["pre_feedforward_layernorm"],
            after_feed_forward=names.get("post_feedforward_layernorm"),
        )
    if len(found) == 2 and all(name.startswith("post_") for name in names):
        return Norms(after_attention=found[0], after_feed_forward=found[1])
    roles = _roles(found, len(path), cross is not None)
    attention, feeding = roles.get("attention"), roles.get("feed_forward")
    before = bool(getattr(module, "norm_first", normed or not set(names) & ON_RESIDUAL))
    if not before:
        return Norms(
            after_attention=attention, after_cross=roles.get("cross"), after_feed_forward=feeding, on_residual=True
        )
    shared = attention is not None and feeding is None
    parallel = shared or _is_parallel(module, names)
    return Norms(attention, None, roles.get("cross"), None, attention if shared else feeding, parallel=parallel)


def _is_wide(norm: Any, width: int) -> bool:
    weight = getattr(norm, "weight", None)
    return weight is None or int(weight.numel()) == width


def _of_heads(inner: str) -> bool:
    """Tell whether a norm is of queries or keys, whose width may be that of the block."""
    return inner.rpartition(".")[2] in QUERY_NORMS + KEY_NORMS


def _roles(found: list[Part], skip: int, has_cross: bool) -> dict[str, Part]:
    """Share norms out: by the layer that their path or name says, the others in the order of their definition."""
    roles: dict[str, Part] = {}
    left = []
    for part in found:
        inner = part.path[skip:].lower()
        name = inner.rpartition(".")[2]
        of_attention = "attention." in inner or "attn" in name or "attention" in name or name.startswith("sa_")
        if is_cross(inner):
            roles.setdefault("cross", part)
        elif of_attention and not name.startswith("post"):
            roles.setdefault("attention", part)
        elif "mlp" in name or "ffn" in name:
            roles.setdefault("feed_forward", part)
        else:
            left.append(part)
    order = ["attention", "cross", "feed_forward"] if has_cross else ["attention", "feed_forward"]
    for role in order:
        if role not in roles and left:
            roles[role] = left.pop(0)
    return roles


def _is_parallel(module: nn.Module, names: dict[str, Part]) -> bool:
    """Tell whether attention and feed-forward both read the block's input through norms of their own."""
    return "ln_attn" in names or bool(getattr(module, "use_parallel_residual", False))
