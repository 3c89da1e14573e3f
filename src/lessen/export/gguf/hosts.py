"""What llama.cpp must be told of each family: its own name for it, its numbers, and where it lays rows differently.

family                    GGUF     differs
llama, mistral            llama    rotates neighbours, so rows of queries and keys are in another order
qwen2, qwen3              qwen2/3  nothing
gemma3_text               gemma3   norms multiply by what is stored, not by one more; two rotary bases
gpt2                      gpt2     matrices are [out, in]

Traps: a rotary scale that GGUF cannot say, windows that llama.cpp would not keep, widths that differ between blocks:
each is refused by name, for a file that opens and writes nonsense is worse than none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lessen.architectures.parts import Stack
from lessen.errors import ConfigError

DEFAULT_SCALE = {"default", "linear"}
GEMMA_PERIOD = 6
"""Of every six blocks of Gemma 3 the last one sees everything."""
GEMMA_LOCAL = 10_000.0


@dataclass(frozen=True)
class Family:
    """How one family of models is written."""

    name: str
    numbers: Callable[[Any, Any], None]
    """Write the numbers of a configuration through a `gguf.GGUFWriter`."""
    swapped: bool = False
    """Whether rows of queries and keys change order."""
    shifted_norms: bool = False
    """Whether a norm multiplies by one more than its weight."""


def family_of(config: Any) -> Family:
    """Return the family of a configuration. Raises ConfigError for one that is not known here."""
    found = FAMILIES.get(config.model_type)
    if found is None:
        raise ConfigError(
            f"a model of type {config.model_type} cannot be written as GGUF here; known: {', '.join(FAMILIES)}; "
            "--to hf writes any family"
        )
    return found


def check_uniform(stack: Stack, config: Any) -> None:
    """Refuse blocks that are not all as wide as the configuration says. Raises ConfigError."""
    heads = config.num_attention_heads
    wanted = {
        "heads": heads,
        "key and value heads": getattr(config, "num_key_value_heads", None) or heads,
        "hidden units": getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None),
    }
    for block in stack.blocks:
        attention, layer = block.attention, block.feed_forward
        if attention is None or layer is None:
            raise ConfigError(f"{block.path} has no attention or no feed-forward layer, which llama.cpp expects")
        found = {"heads": attention.heads, "key and value heads": attention.kv_heads, "hidden units": layer.hidden}
        for what, count in found.items():
            if count != (wanted[what] or 4 * stack.width):
                raise ConfigError(
                    f"{block.path} has {count} {what}, the configuration says {wanted[what]}; llama.cpp reads models "
                    "whose blocks are alike: remove the same number everywhere"
                )


def swap(rows: int, heads: int) -> Tensor:
    """Return the order in which llama.cpp holds rows of queries or keys, int64 [rows].

    transformers rotates input i of a head against i + half; llama.cpp rotates 2i against 2i + 1.
    """
    return torch.arange(rows).view(heads, 2, -1).transpose(1, 2).flatten()


def rotary_factors(model: Any, config: Any) -> Tensor | None:
    """Return by what a rotary scale divides each frequency, float32 [head_dim / 2], or None where there is none.

    Raises:
        ConfigError: a scale that changes with the length or scales attention too.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    if kind in DEFAULT_SCALE:
        return None
    module = next((one for one in model.modules() if isinstance(getattr(one, "inv_freq", None), Tensor)), None)
    if kind != "llama3" or module is None:
        raise ConfigError(
            f"rotary positions of type {kind!r} cannot be written as GGUF here; known: default, linear, llama3"
        )
    found = module.inv_freq.float()
    base = float(parameters["rope_theta"]) ** -(torch.arange(len(found)).float() / len(found))
    factors: Tensor = base / found
    return factors


# -- numbers ---------------------------------------------------------------------------------------------------------
def _attending(writer: Any, config: Any) -> None:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads or heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(width)
    writer.add_value_length(width)


def _context(config: Any) -> int:
    window = getattr(config, "sliding_window", None) if config.model_type != "gemma3_text" else None
    if config.model_type.startswith("qwen") and not getattr(config, "use_sliding_window", False):
        window = None
    if window is not None and window < config.max_position_embeddings:
        raise ConfigError(
            f"the model looks back over {window} tokens only, which llama.cpp does not keep for this family; set "
            f"max_position_embeddings to {window} in config.json to write it for texts of that length"
        )
    return int(config.max_position_embeddings)


def _rotating(writer: Any, config: Any) -> None:
    parameters = config.rope_parameters
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError("heads that are rotated in part cannot be written as GGUF here")
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(parameters["rope_theta"]))
    if parameters.get("rope_type") == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(parameters["factor"]))


def _llama(writer: Any, config: Any) -> None:
    if getattr(config, "mlp_bias", False):
        raise ConfigError(
            "feed-forward layers with biases cannot be written as a GGUF of llama; train without mlp_bias"
        )
    _attending(writer, config)
    _rotating(writer, config)


def _qwen(writer: Any, config: Any) -> None:
    if config.rope_parameters.get("rope_type", "default") not in DEFAULT_SCALE:
        raise ConfigError(
            f"rotary positions of type {config.rope_parameters['rope_type']!r} cannot be written as GGUF here"
        )
    _attending(writer, config)
    _rotating(writer, config)


def _gemma3(writer: Any, config: Any) -> None:
    wanted = [
        "full_attention" if (n + 1) % GEMMA_PERIOD == 0 else "sliding_attention"
        for n in range(config.num_hidden_layers)
    ]
    globally, locally = (config.rope_parameters[name] for name in ("full_attention", "sliding_attention"))
    faults = {
        "layer_types": list(config.layer_types) != wanted,
        "query_pre_attn_scalar": config.query_pre_attn_scalar != config.head_dim,
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None) is not None,
        "rope_parameters": locally["rope_theta"] != GEMMA_LOCAL or locally.get("rope_type", "default") != "default",
    }
    for name, fault in faults.items():
        if fault:
            raise ConfigError(
                f"{name} of this Gemma 3 are not those that llama.cpp assumes; it cannot be written as GGUF"
            )
    _attending(writer, config)
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base(float(globally["rope_theta"]))
    if globally.get("rope_type", "default") == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(globally["factor"]))
    elif globally.get("rope_type", "default") != "default":
        raise ConfigError(f"rotary positions of type {globally['rope_type']!r} cannot be written as GGUF here")


def _gpt2(writer: Any, config: Any) -> None:
    if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        raise ConfigError(f"activation {config.activation_function!r} is not llama.cpp's for GPT-2")
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


FAMILIES = {
    "llama": Family("llama", _llama, swapped=True),
    "mistral": Family("llama", _llama, swapped=True),
    "qwen2": Family("qwen2", _qwen),
    "qwen3": Family("qwen3", _qwen),
    "gemma3_text": Family("gemma3", _gemma3, shifted_norms=True),
    "gpt2": Family("gpt2", _gpt2),
}
