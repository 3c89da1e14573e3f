"""A Hugging Face folder as files: its configuration, the tensors of its shards, and what identifies it.

config.json                        `architectures` names the class, `model_type` the family
model.safetensors                  one file of weights, or
model.safetensors.index.json       which of the files model-0000N-of-0000M.safetensors holds which tensor

Files are checked before a model is built: what is cut, missing, junk or a pickle is named. No code of a folder runs.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lessen import files
from lessen.errors import ConfigError, DataError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
LARGEST_INDEX = 1 << 26
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Any of these makes a folder able to read text."""
COMPANIONS = (
    CONFIG, "generation_config.json", *TOKENIZERS, "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
SNAPSHOT = re.compile(r"snapshots/([0-9a-f]{40})$")


@dataclass(frozen=True)
class HostFolder:
    """A folder whose configuration and shards were read and fit together."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Path]
    """Which file holds which tensor, by the names in the files."""

    @property
    def architecture(self) -> str:
        """Name of the model class that wrote the folder."""
        return str(self.config["architectures"][0])

    @property
    def shards(self) -> list[Path]:
        """The files of weights."""
        return sorted(set(self.tensors.values()))

    @property
    def revision(self) -> str | None:
        """The commit of the hub that the folder is a snapshot of, if it lies in the library's own cache."""
        found = SNAPSHOT.search(self.path.resolve().as_posix())
        return found[1] if found else None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the configuration and of every shard: the identity of a folder without a commit."""
        lines = [f"{file.name} {files.sha256(file)}" for file in (self.path / CONFIG, *self.shards)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """Return what names this model in a record: class, commit if there is one, digest."""
        return {"architecture": self.architecture, "revision": self.revision, "digest": self.digest}


def is_host(path: Path) -> bool:
    """Tell whether `path` looks like a Hugging Face folder."""
    return path.is_dir() and (path / CONFIG).is_file()


def read_folder(path: Path) -> HostFolder:
    """Read the configuration and the list of tensors of a folder; no weights are read.

    Raises:
        ConfigError: there is no such folder, it is no model, or its weights are of a kind that cannot be opened.
        DataError: a file is cut short, junk, missing, or does not hold what the index says.
    """
    if not path.exists():
        raise ConfigError(f"no model folder {path}{neighbour(path)}")
    if not path.is_dir():
        raise ConfigError(f"{path} is a file; give the folder that holds {CONFIG}")
    if not (path / CONFIG).is_file():
        held = ", ".join(sorted(item.name for item in path.iterdir())[:5]) or "nothing"
        raise ConfigError(f"{path} is no Hugging Face model: it has no {CONFIG} (it holds {held})")
    config = _object(path / CONFIG)
    _check_config(path / CONFIG, config)
    return HostFolder(path, config, _tensors(path))


def read_config(path: Path) -> HostFolder:
    """Read the configuration of a folder whose weights are elsewhere or of another form: no tensors are listed.

    Raises:
        ConfigError, DataError: as `read_folder` does for `config.json`.
    """
    config = _object(path / CONFIG)
    _check_config(path / CONFIG, config)
    return HostFolder(path, config, {})


def companions(path: Path) -> dict[str, Path]:
    """Return what a folder holds beside weights, and serving needs: configuration, tokenizer, templates."""
    return {name: path / name for name in COMPANIONS if (path / name).is_file()}


def neighbour(path: Path) -> str:
    """Return ` (did you mean ...?)` where something with nearly that name lies in the same folder."""
    parent = path.parent
    names = [item.name for item in parent.iterdir()] if parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" (did you mean {parent / close[0]}?)" if close else ""


def _object(path: Path) -> dict[str, Any]:
    """Return a JSON object of a folder; such files may hold what ours may not (NaN, deep nesting)."""
    try:
        value = json.loads(files.read_checked(path, limit=LARGEST_INDEX))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable as JSON: {error}; is it the whole file?") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    named = config.get("architectures")
    if not isinstance(config.get("model_type"), str):
        raise ConfigError(f"{path} names no model_type, so that no class can read it")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise ConfigError(f'{path} names no class under "architectures"; add it, such as ["LlamaForCausalLM"]')
    stored = config.get("quantization_config")
    if isinstance(stored, dict):
        kind = stored.get("quant_method", "an unnamed method")
        raise ConfigError(f"{path.parent} holds weights quantised by {kind}; give the folder they were made from")


def _tensors(path: Path) -> dict[str, Path]:
    if (path / INDEX).is_file():
        return _indexed(path)
    if (path / WEIGHTS).is_file():
        return dict.fromkeys(tensor_names(path / WEIGHTS), path / WEIGHTS)
    single = sorted(path.glob("*.safetensors"))
    if len(single) == 1:
        return dict.fromkeys(tensor_names(single[0]), single[0])
    if any((path / name).exists() for name in PICKLES) or list(path.glob("*.bin")):
        raise ConfigError(
            f"{path}: the weights are a pickle, which may run code when read; save the model again with "
            "save_pretrained, which writes safetensors"
        )
    raise ConfigError(f"{path} holds {CONFIG} but no weights: neither {WEIGHTS} nor {INDEX}")


def _indexed(path: Path) -> dict[str, Path]:
    where = _object(path / INDEX).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise DataError(f"{path / INDEX} has no weight_map of names to files")
    held: dict[str, set[str]] = {}
    for name in sorted(set(where.values())):
        if Path(name).name != name:
            raise DataError(f"{path / INDEX} names {name!r}, a file outside of the folder")
        if not (path / name).is_file():
            raise DataError(f"{path}: shard {name} is missing; the index needs it for {_first(where, name)!r}")
        held[name] = set(tensor_names(path / name))
    for tensor, name in where.items():
        if tensor not in held[name]:
            raise DataError(f"{path}: the index says that {name} holds {tensor!r}, and it does not")
    return {tensor: path / name for tensor, name in where.items()}


def _first(where: Mapping[str, str], name: str) -> str:
    return next(tensor for tensor, file in where.items() if file == name)


def tensor_names(path: Path) -> list[str]:
    """Return the names in a safetensors file, whose header says how long the file is.

    Raises:
        DataError: the file is cut short or is none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise DataError(f"{path} is cut short or no safetensors file ({reason}); fetch it again") from error
