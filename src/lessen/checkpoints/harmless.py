"""The classes that a checkpoint may name besides tensors: plain data of Python, NumPy and trainers, an explicit list.

The list has two uses. Packing reads names only and refuses a file that asks for anything else, so that nobody archives
what cannot be opened safely. Loading a state hands the ones that exist here to torch's weights-only loader.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterable
from typing import Any

_BUILTINS = (
    "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long", "object", "range",
    "set", "slice", "str", "tuple", "unicode", "xrange",
)  # fmt: skip
_NAMES = frozenset(
    {
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS),
        "_codecs.encode",
        "copyreg._reconstructor",
        "copy_reg._reconstructor",
        "collections.Counter",
        "collections.OrderedDict",
        "collections.defaultdict",
        "collections.deque",
        "argparse.Namespace",
        "types.SimpleNamespace",
        "datetime.date",
        "datetime.datetime",
        "datetime.time",
        "datetime.timedelta",
        "datetime.timezone",
        "decimal.Decimal",
        "fractions.Fraction",
        "uuid.UUID",
        "typing.Any",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib.WindowsPath",
        "numpy.dtype",
        "numpy.ndarray",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch.serialization._get_layout",
        "torch.nn.parameter.Buffer",
        "torch.nn.parameter.Parameter",
        "torch._tensor._rebuild_from_type_v2",
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)
_PATTERNS = re.compile(
    r"torch\.\w*Storage|torch\.storage\.\w*Storage|torch\._utils\._rebuild_\w+"
    r"|torch\.(b?float|complex|u?int|quint|qint|half|double|long|short|bool|per_|strided|sparse_|preserve_format)\w*"
    r"|torch\.distributed\.tensor(\.\w+)*\.(DTensor|DTensorSpec|TensorMeta|Shard|Replicate|Partial)"
    r"|torch\.distributed\.checkpoint\.metadata\.\w+|torch\.distributed\.checkpoint\.filesystem\._StorageInfo"
    r"|torch\.distributed\.device_mesh\.DeviceMesh"
    r"|numpy\.(_core|core)\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer)|numpy\.dtypes\.\w+DType"
    r"|numpy\.(bool_?|u?int\d*|float\d+|complex\d+|str_|bytes_|datetime64|timedelta64)"
    r"|omegaconf\.(dictconfig\.DictConfig|listconfig\.ListConfig|base\.(ContainerMetadata|Metadata)|nodes\.\w+Node)"
)
_LOADABLE = (
    "argparse.Namespace", "types.SimpleNamespace", "datetime.date", "datetime.datetime", "datetime.time",
    "datetime.timedelta", "datetime.timezone", "decimal.Decimal", "fractions.Fraction", "uuid.UUID",
    "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath", "collections.Counter", "builtins.set",
    "builtins.frozenset", "builtins.range", "builtins.slice", "builtins.complex", "builtins.bytearray",
)  # fmt: skip
"""What a state may hold besides tensors, numbers, strings, lists, dicts and NumPy values, and still be loaded."""


def strangers(names: Iterable[str], allow: Collection[str] = ()) -> list[str]:
    """Return the names that are neither on the list nor in `allow`."""
    return [name for name in names if not (name in _NAMES or name in allow or _PATTERNS.fullmatch(name))]


def loadable() -> list[Any]:
    """Return the listed classes and functions that exist here, as `torch.serialization.safe_globals` takes them."""
    import numpy as np
    from numpy._core.multiarray import _reconstruct, scalar

    found: list[Any] = [np.dtype, np.ndarray]
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):  # one function, two names over the versions
        found += [(scalar, f"{module}.scalar"), (_reconstruct, f"{module}._reconstruct")]
    found += [kind for kind in vars(np.dtypes).values() if isinstance(kind, type)]
    for dotted in _LOADABLE:
        module, _, name = dotted.rpartition(".")
        found.append(getattr(importlib.import_module(module), name))
    return found
