"""A log of clicks with a field of each kind, as rows, as a schema and as a CSV."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lessen.data.schema import FieldSchema, Schema

FIELDS = (
    FieldSchema(name="click", kind="label"),
    FieldSchema(name="user", kind="categorical", minimum_count=2),
    FieldSchema(name="item", kind="categorical"),
    FieldSchema(name="price", kind="numeric", transform="standard", fill=0.0),
    FieldSchema(name="views", kind="numeric", transform="log-squared", fill=0.0),
    FieldSchema(name="recent", kind="sequence", vocabulary="item", separator=";", length=3),
    FieldSchema(name="time", kind="timestamp"),
    FieldSchema(name="query", kind="group"),
)
SCHEMA = Schema(fields=FIELDS)


def rows(count: int = 400) -> list[dict[str, str]]:
    generator = np.random.default_rng(0)
    items = [f"i{k}" for k in range(20)]
    return [
        {
            "click": str(int(generator.random() < 0.4)),
            "user": f"u{generator.zipf(1.5) % 60}",
            "item": items[generator.integers(20)],
            "price": f"{generator.gamma(2.0):.3f}" if generator.random() < 0.9 else "",
            "views": str(int(generator.pareto(1.0) * 3)),
            "recent": ";".join(generator.choice(items, generator.integers(0, 6)).tolist()),
            "time": str(1000 + n),
            "query": f"q{n // 7}",
        }
        for n in range(count)
    ]


def write_csv(path: Path, table: list[dict[str, str]], separator: str = ",") -> Path:
    lines = [separator.join(table[0]), *(separator.join(row.values()) for row in table)]
    path.write_text("\n".join(lines) + "\n")
    return path
