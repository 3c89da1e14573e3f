"""A 4-bit MiniLM searches the old float32 index of Cranfield: which neighbours stay, and what an adapter gives back.

    python -m benchmarks.retrieval.swap --data FOLDER [--cache FOLDER]

Queries are the 225 of Cranfield; documents are encoded once by the float32 encoder, 64 tokens of each. The adapter is
fitted on every second document; recall is the share of the ten nearest documents that the float32 query finds, with its
interval over queries. One thread; vectors are cached, by encoder and part, where a folder is given.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import lessen
from lessen.data.collection import read_cranfield
from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json
from lessen.recipe import Recipe
from lessen.retrieval.adapter import QueryAdapter
from lessen.retrieval.exact import recall, shares
from lessen.tasks.retrieval.readers import TextReader, digest_of_model

RESULT = Path(__file__).parents[1] / "results" / "retrieval_swap.json"
LENGTH, PART, K = 64, 100, 10
ENCODERS: dict[str, list[dict[str, Any]]] = {
    "float32": [],
    "rtn 4": [{"rtn": {"bits": 4}}],
    "rtn 4, tables 4": [{"rtn": {"bits": 4, "table_bits": 4}}],
}


def encoder(steps: list[dict[str, Any]]) -> TextReader:
    if not steps:
        return TextReader("minilm-l6", length=LENGTH)
    task = lessen.get_task({"name": "retrieval-minilm", "length": LENGTH})
    model = Recipe.parse({"name": "swap", "steps": steps}).apply(task.reference(), task)[0]
    return TextReader("minilm-l6", length=LENGTH, weights=(model, digest_of_model(model)))


def vectors(name: str, texts: list[str], cache: Path | None, seconds: float) -> torch.Tensor | None:
    """Return the vectors of texts, or None where the time ran out; what was done is in the cache."""
    start, reader, found = time.process_time(), None, []
    for first in range(0, len(texts), PART):
        path = cache / f"{name.replace(' ', '-').replace(',', '')}-{first}.pt" if cache is not None else None
        if path is not None and path.exists():
            found.append(torch.load(path, weights_only=True))
            continue
        if time.process_time() - start > seconds:
            return None
        reader = reader or encoder(ENCODERS[name])
        some = texts[first : first + PART]
        found.append(reader.vectors(some, [str(first + n) for n in range(len(some))]))
        if path is not None:
            torch.save(found[-1], path)
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--seconds", type=float, default=1e9, help="of processor time for encoding in this run")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    held = read_cranfield(Path(asked.data))
    texts = [*held.queries, *(text or "." for text in held.documents)]
    made = {}
    for name in ENCODERS:
        wanted = texts if name == "float32" else [*held.queries, *(text or "." for text in held.documents[::2])]
        found = vectors(name, wanted, asked.cache, asked.seconds)
        if found is None:
            print("the time ran out; run again")
            return
        made[name] = found
    queries = len(held.queries)
    old_queries, documents = made["float32"].split([queries, len(held.documents)])
    truth = (old_queries @ documents.t()).topk(K).indices
    rows = {}
    for name in list(ENCODERS)[1:]:
        new_queries, new_documents = made[name].split([queries, len(made[name]) - queries])
        ways = {"as it is": new_queries}
        for rank in (0, None):
            said = "turn alone" if rank == 0 else "turn and 96 directions"
            adapter = QueryAdapter.fitted(new_documents, documents[::2], rank)
            ways[f"adapter, {said}"] = F.normalize(adapter(new_queries), dim=1)
        for way, asked_with in ways.items():
            found = (asked_with @ documents.t()).topk(K).indices
            cosine = float(torch.cosine_similarity(asked_with, old_queries).mean())
            rows[f"{name}: {way}"] = {**recall(shares(found, truth), K), "cosine": round(cosine, 5)}
            print(name, way, rows[f"{name}: {way}"])
    record = {
        "benchmark": "retrieval_swap", "command": "python -m benchmarks.retrieval.swap", "length": LENGTH, "k": K,
        "pairs": len(held.documents[::2]), "load": os.getloadavg(),
        "environment": {**environment(1), "transformers": package_version("transformers")}, "rows": rows,
    }  # fmt: skip
    atomic_write(RESULT, dump_json(record))
    print(json.dumps(record["rows"], indent=1))


if __name__ == "__main__":
    main()
