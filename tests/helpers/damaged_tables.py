"""Small files of every format, and what disks, networks, editors and hand edits do to them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable

import polars as pl

from lessen.data.schema import FieldSchema, Schema

ROWS = 60
COLUMNS = {
    "click": [row % 2 for row in range(ROWS)],
    "user": [f"u{row % 7}" for row in range(ROWS)],
    "price": [row / 4 for row in range(ROWS)],
    "tags": [[f"t{row % 5}", f'"{row % 3}\\', "é"] for row in range(ROWS)],
}
FRAME = pl.DataFrame(COLUMNS)
FLAT = FRAME.with_columns(pl.col("tags").list.join("|"))
TOKENS = (b'"', b"\n", b"\r", b",", b"\t", b"|", b":", b" ", b"\0", b"{", b"}", b"[", b"]", b"\\", b"nan", b"1e999", b"-",
          b"\xff", b"\xef\xbb\xbf", b"99999999999999999999", b"true", b"null", b"#", b"''")  # fmt: skip


def _written(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def _zst(data: bytes) -> dict[str, bytes]:
    """Return the file in two frames; none where zstandard is not installed."""
    try:
        from zstandard import ZstdCompressor
    except ImportError:
        return {}
    half = len(data) // 2
    return {"a.csv.zst": b"".join(ZstdCompressor().compress(part) for part in (data[:half], data[half:]))}


def _parquet(**options: object) -> bytes:
    return _written(lambda buffer: FRAME.write_parquet(buffer, **options))  # type: ignore[arg-type]


WHOLE: dict[str, bytes] = {
    "a.csv": _written(FLAT.write_csv),
    "a.tsv": _written(lambda buffer: FLAT.write_csv(buffer, separator="\t")),
    "a.jsonl": "".join(json.dumps(row) + "\n" for row in FRAME.to_dicts()).encode(),
    "a.parquet": _parquet(compression="uncompressed", statistics=True),
    "b.parquet": _parquet(compression="zstd", row_group_size=20),
    "a.libsvm": "".join(f"{row % 2} {row % 7}:1 {7 + row % 5}:1\n" for row in range(ROWS)).encode(),
    "a.vw": "".join(f"{row % 2} 1.0 tag|user u{row % 7} |price x:{row / 4}\n" for row in range(ROWS)).encode(),
    "a.csv.gz": gzip.compress(_written(FLAT.write_csv)),
    "a.csv.bz2": bz2.compress(_written(FLAT.write_csv)),
    "a.csv.xz": lzma.compress(_written(FLAT.write_csv)),
    **_zst(_written(FLAT.write_csv)),
}


def schema_of(name: str) -> Schema:
    """Return a schema that reads the whole file of this name."""
    kind = name.split(".")[1]
    label, user = FieldSchema(name="click", kind="label"), FieldSchema(name="user", kind="categorical")
    price = FieldSchema(name="price", kind="numeric", fill=0.0)
    tags = FieldSchema(name="tags", kind="multi", length=3)
    label = label.model_copy(update={"name": "label"}) if kind in ("libsvm", "vw") else label
    if kind == "libsvm":
        ids = tuple(FieldSchema(name=name, kind="categorical") for name in ("f0", "f1"))
        return Schema(format="libsvm", fields=(label, *ids))
    if kind == "vw":
        return Schema(format="vw", fields=(label, user, FieldSchema(name="price", kind="categorical")))
    return Schema(format=kind, fields=(label, user, price, tags))  # type: ignore[arg-type]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Return the file with one to four damages: bits flipped, bytes cut, doubled, moved, or words put in."""
    raw = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at, kind = draw.randrange(len(raw) + 1), draw.randrange(7)
        length = draw.choice((1, 2, 4, 16, 64))
        if kind == 0 and raw:
            raw[min(at, len(raw) - 1)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            raw = raw[:at]
        elif kind == 2:
            del raw[at : at + length]
        elif kind == 3:
            raw[at:at] = raw[at : at + length]
        elif kind == 4:
            raw[at:at] = draw.choice(TOKENS)
        elif kind == 5:
            raw[at : at + length] = bytes(draw.randrange(256) for _ in range(length))
        else:
            other = draw.randrange(len(raw) + 1)
            raw[at : at + length] = raw[other : other + length]
    return bytes(raw)
