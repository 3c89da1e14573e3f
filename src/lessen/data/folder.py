"""A data set on disk: columnar arrays that are read in place, vocabularies, a versioned description, a fingerprint.

dataset.json                      version, schema, number transforms, rows, fingerprint of the sources
vocabulary/<number>.parquet       one column of strings a vocabulary, in the order of the ids
<split>/ids.npy                   int32 [rows, columns], global ids
<split>/numeric.npy label.npy weight.npy timestamp.npy group.npy
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from lessen.data.columns import Batch, Columns, Layout
from lessen.data.encoder import VERSION, Encoded, Encoder
from lessen.data.schema import Schema, parse_schema
from lessen.data.vocabulary import Hashed, Vocabulary
from lessen.errors import ArtifactError, DataError
from lessen.files import dump_json, parse_json, read_checked

DESCRIPTION = "dataset.json"
WINDOW_ROWS = 1 << 18


class ArrayWriter:
    """Appends rows to a .npy file; the number of rows is filled in at the end."""

    def __init__(self, path: Path, kind: np.dtype[Any], width: int | None) -> None:
        self.handle: BinaryIO = path.open("xb")
        self.kind, self.width, self.rows = kind, width, 0
        self._header()

    def _header(self) -> None:
        # numpy leaves room for a row count of any size, so that the header can be written again in place
        shape = (self.rows,) if self.width is None else (self.rows, self.width)
        description = {"descr": np.lib.format.dtype_to_descr(self.kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.handle, description)

    def append(self, values: NDArray[Any]) -> None:
        """Write rows."""
        self.handle.write(np.ascontiguousarray(values, dtype=self.kind).tobytes())
        self.rows += len(values)

    def close(self) -> None:
        """Write the final header."""
        self.handle.seek(0)
        self._header()
        self.handle.close()


class SplitWriter:
    """Writes the arrays of one split."""

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        folder.mkdir()
        kinds: dict[str, tuple[str, int | None]] = {"ids": ("<i4", encoder.layout.width), "label": ("<f4", None)}
        if encoder.plain:
            kinds["numeric"] = ("<f4", len(encoder.plain))
        for spec in encoder.schema.of_kind("weight", "timestamp", "group"):
            kinds[spec.kind] = ("<i4" if spec.kind == "group" else "<f8", None)
        self.arrays = {name: ArrayWriter(folder / f"{name}.npy", np.dtype(k), w) for name, (k, w) in kinds.items()}

    def append(self, encoded: Encoded, mask: NDArray[np.bool_]) -> None:
        """Write the rows that `mask` picks."""
        parts = {"ids": encoded.ids, "label": encoded.label, "numeric": encoded.numeric, **encoded.extras}
        for name, array in self.arrays.items():
            array.append(parts[name] if mask.all() else parts[name][mask])

    def close(self) -> int:
        """Finish the files and return the number of rows."""
        for array in self.arrays.values():
            array.close()
        return self.arrays["label"].rows


def write_description(
    folder: Path, encoder: Encoder, rows: dict[str, int], fingerprint: str, left_out: Sequence[str] = ()
) -> None:
    """Write vocabularies and dataset.json into a folder under construction; `left_out` names rows that were bad."""
    (folder / "vocabulary").mkdir()
    vocabularies: dict[str, Any] = {}
    for number, (name, vocabulary) in enumerate(encoder.vocabularies.items()):
        if isinstance(vocabulary, Hashed):
            vocabularies[name] = {"buckets": vocabulary.buckets, "exact": vocabulary.exact}
            continue
        path = folder / "vocabulary" / f"{number}.parquet"
        pl.DataFrame({"value": vocabulary.values}).write_parquet(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shown = {"file": number, "rows": len(vocabulary.values), "sha256": digest}
        vocabularies[name] = {**shown, "exact": vocabulary.exact}
    description = {
        "version": encoder.version,
        "fingerprint": fingerprint,
        "rows": rows,
        "schema": encoder.schema.model_dump(mode="json"),
        "numbers": encoder.numbers,
        "vocabularies": vocabularies,
        "left_out": list(left_out),
    }
    (folder / DESCRIPTION).write_text(dump_json(description), encoding="utf-8")


class Dataset:
    """An encoded data set that was opened; arrays are memory-mapped, nothing is read until it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Open `folder`. Raises DataError if it is not a whole data set of this version."""
        self.folder = folder
        try:
            self.description = parse_json(read_checked(folder / DESCRIPTION), str(folder / DESCRIPTION))
            version = self.description["version"]
            if version not in range(1, VERSION + 1):
                raise DataError(f"{folder} has version {version}, this release reads 1 to {VERSION}")
            self.schema: Schema = parse_schema(self.description["schema"], f"{folder / DESCRIPTION}: schema")
            self.encoder = Encoder(self.schema, self._vocabularies(), self.description["numbers"], version)
            self.rows: dict[str, int] = {name: int(rows) for name, rows in self.description["rows"].items()}
        except (ArtifactError, KeyError, TypeError) as error:
            raise DataError(f"{folder} is no data set that `lessen data encode` wrote: {error}") from error

    @property
    def layout(self) -> Layout:
        """Fields, columns and vocabularies."""
        return self.encoder.layout

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the sources, the schema and the split rule."""
        return str(self.description["fingerprint"])

    @property
    def left_out(self) -> list[str]:
        """Rows that were bad and left out when the data were encoded, a line a kind."""
        return [str(line) for line in self.description.get("left_out", [])]

    def _vocabularies(self) -> dict[str, Vocabulary | Hashed]:
        known: dict[str, Vocabulary | Hashed] = {}
        for name, entry in self.description["vocabularies"].items():
            if "buckets" in entry:
                known[name] = Hashed(int(entry["buckets"]), bool(entry.get("exact", True)))
                continue
            raw = read_checked(self.folder / "vocabulary" / f"{int(entry['file'])}.parquet", entry["sha256"])
            known[name] = Vocabulary(pl.read_parquet(raw)["value"], bool(entry.get("exact", False)))
        return known

    def array(self, split: str, name: str) -> NDArray[Any]:
        """Return an array of a split, mapped from disk. Raises DataError if it is missing, truncated or misshapen."""
        path = self.folder / split / f"{name}.npy"
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is missing or truncated ({error}); encode the data again") from error
        if len(array) != self.rows[split]:
            raise DataError(f"{path} has {len(array)} rows, expected {self.rows[split]}; encode the data again")
        return array

    def columns(self, split: str) -> Columns:
        """Return a split as tensors in memory, checked."""
        ids, label = (torch.from_numpy(np.array(self.array(split, name))) for name in ("ids", "label"))
        numeric = torch.from_numpy(np.array(self.array(split, "numeric"))) if self.layout.numeric else None
        return Columns(ids, label, self.layout, numeric)

    def stream(self, split: str, size: int, seed: int | None = None, window: int = WINDOW_ROWS) -> Iterator[Batch]:
        """Yield batches without loading the split: file order, or shuffled by `seed`.

        Labels are float32 [B], or [B, 2] with the weight in the second column where the schema has a weight.

        Shuffling reads runs of 4096 rows in random order, fills a window with them and permutes the window, so that
        memory holds one window while neighbours of the file are still spread over the epoch.
        """
        names = ["ids", "label", *(["numeric"] if self.layout.numeric else [])]
        names += [spec.kind for spec in self.schema.of_kind("weight")]
        carried: list[NDArray[Any]] = []
        for rows in _windows(self.rows[split], window, seed):
            # opened anew for each window: pages of a mapping that is gone do not count as held memory
            arrays = [self.array(split, name) for name in names]
            parts = [np.concatenate([array[a:b] for a, b in rows]) for array in arrays]
            if seed is not None:
                order = np.random.default_rng([seed, rows[0][0]]).permutation(len(parts[0]))
                parts = [part[order] for part in parts]
            if carried:
                parts = [np.concatenate(pair) for pair in zip(carried, parts, strict=True)]
            whole = len(parts[0]) - len(parts[0]) % size
            for start in range(0, whole, size):
                yield _batch(names, [part[start : start + size] for part in parts])
            carried = [part[whole:] for part in parts]
        if carried and len(carried[0]) > (seed is not None):
            yield _batch(names, carried)


def _windows(rows: int, window: int, seed: int | None) -> Iterator[list[tuple[int, int]]]:
    """Cut `rows` into lists of runs; one list is what memory holds at a time."""
    run = min(4096, window) if seed is not None else window
    runs = [(start, min(start + run, rows)) for start in range(0, rows, run)]
    if seed is not None:
        runs = [runs[i] for i in np.random.default_rng(seed).permutation(len(runs))]
    count = max(1, window // run)
    for start in range(0, len(runs), count):
        yield runs[start : start + count]


def _batch(names: list[str], parts: list[NDArray[Any]]) -> Batch:
    tensors = {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in zip(names, parts, strict=True)}
    label, weight = tensors.pop("label"), tensors.pop("weight", None)
    return tensors, label if weight is None else torch.stack([label, weight.float()], dim=1)
