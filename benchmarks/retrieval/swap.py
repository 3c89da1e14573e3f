"""A 4-bit MiniLM searches the old float32 index of Cranfield: which neighbours stay, and what an adapter gives back.

    python -m benchmarks.retrieval.swap --data FOLDER [--text FILE] [--cache FOLDER] [--encoder GLOB]

Queries are the 225 of Cranfield; documents are encoded once by the float32 encoder, 64 tokens of each. No query is a
pair of an adapter: pairs are every second document, or the sentences of all documents, or those and the lines of a text
file (WikiText-2). Recall is the share of the ten nearest documents that the float32 query finds, with its interval over
queries. `gptq` is calibrated on documents. One thread; vectors are cached where a folder is given.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import lessen
from lessen.data.collection import read_cranfield
from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json, parse_json
from lessen.recipe import Recipe
from lessen.retrieval.adapter import QueryAdapter
from lessen.retrieval.exact import recall, shares
from lessen.tasks.retrieval.readers import TextReader, digest_of_model

RESULT = Path(__file__).parents[1] / "results" / "retrieval_swap_pairs.json"
LENGTH, PART, K, WORDS, SENTENCES, LINES = 64, 256, 10, 5, 3000, 500
ENCODERS: dict[str, list[dict[str, Any]]] = {
    "rtn 4": [{"rtn": {"bits": 4}}],
    "gptq 4": [{"gptq": {"bits": 4, "calibration_batches": 24, "ranges": "search", "refit": 4}}],
    "gptq 4, groups of 32": [
        {"gptq": {"bits": 4, "group": 32, "calibration_batches": 24, "ranges": "search", "refit": 4}}
    ],
    "rtn 4, tables 4": [{"rtn": {"bits": 4, "table_bits": 4}}],
}
RANKS = {"turn alone": 0, "turn and 96 directions": None, "turn and 384 directions": 384}


def encoder(steps: list[dict[str, Any]], documents: list[str]) -> TextReader:
    if not steps:
        return TextReader("minilm-l6", length=LENGTH, batch=64)
    task = lessen.get_task({"name": "retrieval-minilm", "length": LENGTH})

    def batches(split: str, seed: int = 0) -> Iterator[Any]:
        yield from task.encoder.batches(documents, 32)

    task = task.view(batches=batches)
    model = Recipe.parse({"name": "swap", "steps": steps}).apply(task.reference(), task)[0]
    return TextReader("minilm-l6", length=LENGTH, batch=64, weights=(model, digest_of_model(model)))


def texts_of(data: str, text: str | None) -> dict[str, list[str]]:
    """Return queries, documents, their sentences, and lines of another text."""
    held = read_cranfield(Path(data))
    documents = [one or "." for one in held.documents]
    sentences = [part.strip() for one in documents for part in re.split(r"\s\.(?=\s|$)", one)]
    lines = [] if text is None else Path(text).read_text("utf-8").splitlines()
    prose = [line.strip() for line in lines if len(line.split()) > WORDS and not line.strip().startswith("=")]
    return {
        "queries": list(held.queries), "documents": documents,
        "sentences": [one for one in sentences if len(one.split()) > WORDS][::3][:SENTENCES], "lines": prose[:LINES],
    }  # fmt: skip


def vectors(
    name: str, steps: list[dict[str, Any]], texts: dict[str, list[str]], cache: Path | None, seconds: float
) -> dict[str, torch.Tensor] | None:
    """Return the vectors of texts, or None where the time ran out; what was done is in the cache."""
    start, reader, made = time.process_time(), None, {}
    for kind, own in texts.items():
        found = []
        for first in range(0, len(own), PART):
            stem = f"{name}-{kind}-{first}.pt".replace(" ", "-").replace(",", "")
            path = cache / stem if cache is not None else None
            if path is not None and path.exists():
                found.append(torch.load(path, weights_only=True))
                continue
            if time.process_time() - start > seconds:
                return None
            reader = reader or encoder(steps, texts["documents"])
            some = own[first : first + PART]
            found.append(reader.vectors(some, [str(first + n) for n in range(len(some))]))
            if path is not None:
                torch.save(found[-1], path)
        made[kind] = torch.cat(found) if found else torch.zeros(0, 384)
    return made


def judged(new: dict[str, torch.Tensor], old: dict[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """Return what queries of the new encoder find, as they are and through adapters of several pairs and ranks."""
    truth = (old["queries"] @ old["documents"].t()).topk(K).indices
    pairs = {
        "every second document": (new["documents"][::2], old["documents"][::2]),
        "sentences": (new["sentences"], old["sentences"]),
        "sentences, documents": tuple(torch.cat([m["sentences"], m["documents"]]) for m in (new, old)),
        "sentences, documents, lines": tuple(
            torch.cat([m["sentences"], m["documents"], m["lines"]]) for m in (new, old)
        ),
    }
    asked: dict[str, tuple[torch.Tensor, int]] = {"as it is": (new["queries"], 0)}
    for said, (x, y) in pairs.items():
        for rank, number in RANKS.items():
            made = F.normalize(QueryAdapter.fitted(x, y, number)(new["queries"]), dim=1)
            asked[f"{said}: {rank}"] = made, len(x)
    rows = {}
    for name, (queries, count) in asked.items():
        found = (queries @ old["documents"].t()).topk(K).indices
        cosine = float(torch.cosine_similarity(queries, old["queries"]).mean())
        rows[name] = {**recall(shares(found, truth), K), "cosine": round(cosine, 5), "pairs": count}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--text", help="a text file whose lines are pairs too")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--encoder", default="*", help="glob over encoders")
    parser.add_argument("--seconds", type=float, default=1e9, help="of processor time for encoding in this run")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    texts = texts_of(asked.data, asked.text)
    print({kind: len(own) for kind, own in texts.items()})
    old = vectors("float32", [], texts, asked.cache, asked.seconds)
    record = parse_json(RESULT.read_bytes(), str(RESULT)) if RESULT.exists() else {"rows": {}}
    for name in fnmatch.filter(ENCODERS, asked.encoder):
        new = None if old is None else vectors(name, ENCODERS[name], texts, asked.cache, asked.seconds)
        if old is None or new is None:
            print("the time ran out; run again")
            return
        record["rows"][name] = judged(new, old)
        for way, row in record["rows"][name].items():
            print(name, way, row)
    record |= {
        "benchmark": "retrieval_swap_pairs", "command": "python -m benchmarks.retrieval.swap", "length": LENGTH, "k": K,
        "texts": {kind: len(own) for kind, own in texts.items()}, "load": os.getloadavg(), "encoders": ENCODERS,
        "environment": {**environment(1), "transformers": package_version("transformers")},
    }  # fmt: skip
    atomic_write(RESULT, dump_json(record))


if __name__ == "__main__":
    main()
