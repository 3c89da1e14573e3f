"""Outputs of a teacher on disk, row by row, so that rows that come again cost a look-up, in whatever batch they come.

    folder/teacher.json              whose outputs these are
    folder/part-XXXX.safetensors     keys uint8 [rows, 16], and each output [rows, ...]; a digest of both in the header

A key is a hash of everything the batch says of a row. Parts are written whole or not at all; a kill loses the rows
that were gathered since the last one. Several processes may fill one folder.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lessen.errors import ArtifactError, ConfigError, DataError
from lessen.files import atomic_write, dump_json, parse_json, read_checked
from lessen.log import SILENT, Log
from lessen.train.nested import digest_of_tensors, tensors_of

VERSION = 1
KEY_BYTES = 16
PART_BYTES = 16 << 20
"""Rows are gathered up to this size before a part is written."""
Keys = NDArray[np.uint64]
Signature = tuple[tuple[str, tuple[int, ...], str], ...]


class OutputCache:
    """Rows of outputs by key.

    Args:
        folder: made if it is not there.
        limit: most bytes on disk; when they are reached, later rows are not kept.

    Raises:
        ConfigError: the limit is below 1.
    """

    def __init__(self, folder: Path, limit: int = 1 << 30, log: Log = SILENT) -> None:
        if limit < 1:
            raise ConfigError(f"a cache of {limit} bytes is not accepted; give it at least 1, or use none")
        self.folder, self.limit, self.log = folder, limit, log
        self.bytes = 0
        self._parts: list[dict[str, Tensor]] = []
        self._first, self._second = np.empty(0, np.uint64), np.empty(0, np.uint64)
        """Both halves of the keys on disk, in order of the first."""
        self._place = np.empty(0, np.int64)
        """Where their rows are: part times 2^32 plus row."""
        self._waiting: dict[Signature, list[tuple[Keys, dict[str, Tensor]]]] = {}
        self._waiting_first = np.empty(0, np.uint64)
        self._waiting_bytes = 0
        self._owner: dict[str, Any] = {}
        self._told = False

    def open(self, owner: str, names: Sequence[str]) -> None:
        """Claim the folder for a teacher's digest and the names of its outputs, and read what is there.

        Raises:
            ArtifactError: it belongs to another teacher, or a part is damaged.
            OutputError: it cannot be written.
        """
        self._owner = {"version": VERSION, "teacher": owner, "outputs": list(names)}
        path = self.folder / "teacher.json"
        if path.exists():
            found = parse_json(read_checked(path), str(path))
            if found != self._owner:
                raise ArtifactError(
                    f"{self.folder} holds the outputs of another teacher, or other outputs of this one; "
                    "choose another folder or remove it"
                )
        else:
            atomic_write(path, dump_json(self._owner))
        for part in sorted(self.folder.glob("part-*.safetensors")):
            self._add(part)

    def _add(self, path: Path) -> None:
        try:
            with safe_open(str(path), framework="pt") as handle:
                tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - not a mapping
                header = parse_json((handle.metadata() or {}).get("lessen", "{}"), f"header of {path}")
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path} is damaged ({error}); remove it, and its rows are computed again") from error
        if header != {**self._owner, "digest": digest_of_tensors(tensors)} or "keys" not in tensors:
            raise ArtifactError(f"{path} is damaged or of another teacher; remove it, and its rows are computed again")
        keys = tensors.pop("keys").numpy().view(np.uint64)
        first = np.concatenate([self._first, keys[:, 0]])
        order = np.argsort(first, kind="stable")
        self._first, self._second = first[order], np.concatenate([self._second, keys[:, 1]])[order]
        rows = (len(self._parts) << 32) + np.arange(len(keys))
        self._place = np.concatenate([self._place, rows])[order]
        self._parts.append(tensors)
        self.bytes += path.stat().st_size

    # -- rows -----------------------------------------------------------------------------------------------------
    def _places(self, keys: Keys) -> NDArray[np.int64]:
        """Return where the rows are on disk, -1 for those that are not."""
        if not len(self._first):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self._first, keys[:, 0]), len(self._first) - 1)
        known = (self._first[at] == keys[:, 0]) & (self._second[at] == keys[:, 1])
        return np.where(known, self._place[at], -1)

    def find(self, keys: Keys) -> dict[str, Tensor] | None:
        """Return the outputs of all these rows, stacked, or None if one is unknown or their forms differ.

        Raises:
            OutputError: rows that wait had to be written, and could not.
        """
        places = self._places(keys)
        if self._waiting_bytes and np.isin(keys[places < 0, 0], self._waiting_first).any():
            self.flush()
            places = self._places(keys)
        if not len(places) or places.min() < 0:
            return None
        if len(self._parts) == 1:
            only = torch.from_numpy(places)
            return {name: tensor[only] for name, tensor in self._parts[0].items()}
        part_of, row_of = places >> 32, places & 0xFFFFFFFF
        parts = np.unique(part_of)
        if len({_signature(self._parts[part], skip=1) for part in parts}) != 1:
            return None
        first = self._parts[parts[0]]
        stacked = {
            name: torch.empty(len(keys), *tensor.shape[1:], dtype=tensor.dtype) for name, tensor in first.items()
        }
        for part in parts:
            into = np.flatnonzero(part_of == part)
            rows = torch.from_numpy(row_of[into])
            for name, tensor in self._parts[part].items():
                stacked[name][torch.from_numpy(into)] = tensor[rows]
        return stacked

    def add(self, keys: Keys, outputs: dict[str, Tensor]) -> None:
        """Keep the rows that are new. Raises OutputError when a part cannot be written."""
        distinct = np.zeros(len(keys), dtype=bool)
        distinct[np.unique(keys[:, 0], return_index=True)[1]] = True
        new = np.flatnonzero(distinct & (self._places(keys) < 0) & ~np.isin(keys[:, 0], self._waiting_first))
        size = KEY_BYTES + sum(tensor[:1].nbytes for tensor in outputs.values())
        room = max(0, self.limit - self.bytes - self._waiting_bytes) // size
        if room < len(new) and not self._told:
            self.log.note(f"the cache {self.folder} is full ({self.limit:,} bytes); other rows are computed anew")
            self._told = True
        new = new[:room]
        if not len(new):
            return
        rows = torch.from_numpy(new)
        kept = {name: tensor.detach().cpu()[rows] for name, tensor in outputs.items()}
        self._waiting.setdefault(_signature(kept, skip=1), []).append((keys[new], kept))
        self._waiting_first = np.concatenate([self._waiting_first, keys[new, 0]])
        self._waiting_bytes += size * len(new)
        if self._waiting_bytes >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait. Raises OutputError."""
        for pieces in self._waiting.values():
            tensors = {name: torch.cat([kept[name] for _, kept in pieces]) for name in pieces[0][1]}
            keys = np.ascontiguousarray(np.concatenate([keys for keys, _ in pieces]))
            tensors["keys"] = torch.from_numpy(keys.view(np.uint8))
            header = {**self._owner, "digest": digest_of_tensors(tensors)}
            path = self.folder / f"part-{uuid.uuid4().hex[:12]}.safetensors"
            atomic_write(path, save(tensors, metadata={"lessen": json.dumps(header)}))
            self._add(path)
        self._waiting, self._waiting_first, self._waiting_bytes = {}, np.empty(0, np.uint64), 0


def row_keys(batch: Any) -> Keys:
    """Return a key for each row of a batch, uint64 [rows, 2]: a hash of every tensor's row, with dtypes and shapes.

    A key is four times the high half of a multilinear hash modulo 2^64 over the 32-bit words of the row (Lemire and
    Kaser, arXiv 1202.4961), so that two given rows share one with a probability of 2^-128.

    Raises:
        DataError: the tensors of the batch do not have equally many rows.
    """
    tensors = [tensor for tensor in tensors_of(batch) if tensor.ndim]
    lengths = {len(tensor) for tensor in tensors}
    if len(lengths) != 1:
        raise DataError(f"rows of a batch can be told apart only if its tensors have equally many, not {lengths}")
    count = lengths.pop()
    total = np.zeros((count, KEY_BYTES // 4), dtype=np.uint64)
    for place, tensor in enumerate(tensors):
        raw = tensor.detach().cpu().contiguous().reshape(count, -1).view(torch.uint8).numpy()
        if raw.shape[1] % 4:
            raw = np.pad(raw, ((0, 0), (0, -raw.shape[1] % 4)))
        words = raw.view(np.uint32).astype(np.uint64)
        total += words @ _coefficients(place, words.shape[1])
    form = repr([(str(tensor.dtype), tuple(tensor.shape[1:])) for tensor in tensors]).encode()
    salt = np.frombuffer(hashlib.blake2b(form, digest_size=KEY_BYTES).digest(), dtype=np.uint32)
    return ((total >> np.uint64(32)).astype(np.uint32) ^ salt).view(np.uint64)


@lru_cache(maxsize=32)
def _coefficients(place: int, words: int) -> NDArray[np.uint64]:
    """Return fixed random numbers [words, 4] for the tensor at a place of the batch."""
    raw = np.random.Philox(key=place).random_raw(words * (KEY_BYTES // 4))
    return np.asarray(raw, dtype=np.uint64).reshape(words, -1)


def _signature(tensors: dict[str, Tensor], skip: int = 0) -> Signature:
    """Return names, shapes (without the first `skip` axes) and dtypes."""
    return tuple(sorted((name, tuple(tensor.shape[skip:]), str(tensor.dtype)) for name, tensor in tensors.items()))
