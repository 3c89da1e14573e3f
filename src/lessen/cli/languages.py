"""Getting a language model with its tokenizer: a folder, a GGUF file, an id, or an artifact that holds both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lessen.architectures.folder import CONFIG, TOKENIZERS, read_config
from lessen.architectures.loading import build_configured, host_folder, load_host, load_model, load_tokenizer
from lessen.artifact import folder as artifact
from lessen.artifact.layout import Structure, read_manifest, read_structure
from lessen.cli.loading import CAUSAL, is_host_name, open_model
from lessen.errors import ConfigError
from lessen.tasks import get_task


def open_language(name: str, dtype: str | None = None) -> tuple[Any, Any]:
    """Return `(model, tokenizer)` of a causal language model in evaluation mode, compact as it is stored.

    Args:
        name: an artifact, or what `architectures.loading.load_model` takes.
        dtype: of a model that is no artifact, `float32` by default; an artifact keeps the one it was made in.

    Raises:
        ConfigError: nothing of that name, no causal language model, or a dtype for an artifact.
        ArtifactError, DataError: a file is damaged.
    """
    if not (Path(name) / artifact.MANIFEST).is_file():
        return load_model(name, dtype or "float32")
    if dtype is not None:
        raise ConfigError(f"{name} is an artifact and keeps the type it was made in; leave --dtype out")
    model, tokenizer = _of_artifact(name)
    head = getattr(model, "get_output_embeddings", None)
    if head is None or head() is None:
        raise ConfigError(f"{name} holds a {type(model).__name__}, not a causal language model: it has no head")
    if tokenizer is None:
        raise ConfigError(f"{name} holds no tokenizer; compress the model with its tokenizer beside it")
    return model, tokenizer


def open_any(name: str) -> tuple[Any, Any | None]:
    """Return the same in float32, the tokenizer None where there is none, of a model that may be no language model.

    A container says itself why it cannot hold a model, which may be a better reason than that a tokenizer is missing.
    """
    if (Path(name) / artifact.MANIFEST).is_file():
        return _of_artifact(name)
    if is_host_name(name) and _tokenizer(host_folder(name)) is None:
        return load_host(name, "float32"), None
    return load_model(name)


def open_host(name: str, task: str | None) -> tuple[Any, Any | None]:
    """Return `(model, tokenizer)` of any Hugging Face model, the tokenizer None where there is none.

    Raises:
        ConfigError, ArtifactError, DataError: as `open_language` and `loading.open_model`.
    """
    folder = Path(name)
    if (folder / artifact.MANIFEST).is_file():
        structure = read_structure(folder, read_manifest(folder))
        if (folder / CONFIG).is_file() and structure.base is None:
            return artifact.load(folder, _architecture(folder, structure)), _tokenizer(folder)
        return open_model(name, task)[0], None
    if not is_host_name(name):
        return open_model(name, task)[0], None
    return load_host(name), _tokenizer(host_folder(name))


def writes_text(name: str) -> bool:
    """Tell whether a name is a causal language model, by its configuration; no weights are read."""
    folder = Path(name)
    if not (folder / artifact.MANIFEST).is_file():
        if not is_host_name(name):
            return False
        folder = host_folder(name)
    return (folder / CONFIG).is_file() and read_config(folder).architecture.endswith(CAUSAL)


def _tokenizer(folder: Path) -> Any | None:
    return load_tokenizer(folder) if any((folder / one).is_file() for one in TOKENIZERS) else None


def _architecture(folder: Path, structure: Structure) -> Any:
    return build_configured(folder, (structure.task or {}).get("dtype"))


def _of_artifact(name: str) -> tuple[Any, Any | None]:
    folder = Path(name)
    structure = read_structure(folder, read_manifest(folder))
    if (folder / CONFIG).is_file() and structure.base is None:
        return artifact.load(folder, _architecture(folder, structure)), _tokenizer(folder)
    model = artifact.load(folder)
    return model, getattr(get_task(structure.task, str(folder)), "tokenizer", None)
