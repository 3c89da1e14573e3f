"""Late interaction: what exact MaxSim and MUVERA encodings cost, and what they find on Cranfield with MiniLM's tokens.

    python -m benchmarks.retrieval.late speed [--port FOLDER]
    python -m benchmarks.retrieval.late cranfield --data FOLDER [--cache FILE]
    python -m benchmarks.retrieval.late times --data FOLDER [--cache FILE]
    python -m benchmarks.retrieval.late drawn

`speed` times drawn documents (76 tokens of 128 numbers on average), interleaved, by processor time, one thread; peers
are timed where they are installed (maxsim-cpu, numkong) or given (`--port`: the folder of fde_generator.py of
sionic-ai/muvera-py). `cranfield` judges against exact search over all documents; units are queries. The cache holds
token vectors (float16), which take about a minute of one core to make. `drawn` makes documents of words that other
documents share (Zipf), each moved towards what its document is about: a query's words stand in many documents.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json
from lessen.retrieval.exact import recall, shares
from lessen.retrieval.maxsim import Screen, chamfer, search
from lessen.retrieval.muvera import Encoder, Encoding, cells_encoded
from lessen.stored.vectors.flat import Int8Vectors
from lessen.stored.vectors.rotated import RotatedVectors
from lessen.stored.vectors.token_sets import TokenSets

RESULT = Path(__file__).parents[1] / "results" / "retrieval_late.json"
LENGTH, ROUNDS = 128, 3


def write(part: str, found: dict[str, Any]) -> None:
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {"benchmark": "retrieval_late"}
    names = ("faiss-cpu", "maxsim-cpu", "numkong", "transformers", "llvmlite")
    versions = {name: package_version(name) for name in names}
    record[part] = {
        "command": f"python -m benchmarks.retrieval.late {part}", "load": os.getloadavg(),
        "environment": {**environment(1), **{k: v for k, v in versions.items() if v}}, **found,
    }  # fmt: skip
    atomic_write(RESULT, dump_json(record))


def drawn(count: int, dim: int = 128) -> list[torch.Tensor]:
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(70), 0.45, count).astype(int), 12, 250)
    torch.manual_seed(0)
    return [torch.nn.functional.normalize(torch.randn(int(one), dim) + 0.25, dim=1) for one in lengths]


def interleaved(ways: dict[str, Callable[[], Any]], count: int) -> dict[str, dict[str, float]]:
    """Return, for each way, processor microseconds a document (fastest round) and how many times the first takes."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    first = next(iter(ways))
    return {
        name: {
            "us_a_document": round(1e6 * min(own) / count, 3),
            "times_the_first": round(float(np.median(np.divide(own, seconds[first]))), 2),
        }
        for name, own in seconds.items()
    }


def speed(port: str | None) -> None:
    documents = drawn(2400)
    sets = TokenSets.of(documents)
    query = torch.nn.functional.normalize(documents[7][:32] + 0.9 * torch.randn(32, 128) / 128**0.5, dim=1)
    screen, every = Screen(sets), torch.arange(len(documents))
    padded = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(one)) for one in documents], batch_first=True) == 0
    ways: dict[str, Callable[[], Any]] = {
        "exact top 10 behind the screen": lambda: search(query, screen, 10),
        "the screen alone": lambda: screen.scores(query),
        "torch, one document at a time": lambda: [(one @ query.t()).amax(0).sum() for one in documents],
        "torch, padded": lambda: (padded @ query.t()).masked_fill(mask[:, :, None], -9.0).amax(1).sum(1),
        "torch, segments": lambda: chamfer(query, sets, every),
    }
    if importlib.util.find_spec("maxsim_cpu"):
        import maxsim_cpu

        arrays, asked = [one.numpy() for one in documents], query.numpy()
        ways["maxsim-cpu"] = lambda: maxsim_cpu.maxsim_scores_variable(asked, arrays)
    if importlib.util.find_spec("numkong"):
        import numkong

        held = [numkong.maxsim_pack(one.numpy(), dtype="f32") for one in documents]
        own = numkong.maxsim_pack(query.numpy(), dtype="f32")
        ways["numkong (packed, not certified)"] = lambda: [numkong.maxsim_packed(own, one) for one in held]
    maxsim = interleaved(ways, len(documents))
    encoder = Encoder(Encoding(128))
    encode: dict[str, Callable[[], Any]] = {
        "encodings of 10,240 numbers": lambda: encoder.documents(sets),
        "the same by torch's operators": lambda: cells_encoded(encoder, sets.tokens, sets.starts, True),
    }
    muvera = interleaved(encode, len(documents))
    if port is not None:
        muvera["muvera-py"] = of_port(Path(port), documents[:40], encoder)
    write("speed", {"documents": len(documents), "tokens": sets.count, "maxsim": maxsim, "muvera": muvera})
    print(json.dumps({"maxsim": maxsim, "muvera": muvera}, indent=1))


def of_port(folder: Path, documents: list[torch.Tensor], encoder: Encoder) -> dict[str, float]:
    """Time the port on a few documents, in turn with ours on the same."""
    sys.path.insert(0, str(folder))
    import logging

    logging.disable(logging.CRITICAL)
    import fde_generator as other  # type: ignore[import-not-found]

    settings = other.FixedDimensionalEncodingConfig(
        dimension=128, num_repetitions=20, num_simhash_projections=5, fill_empty_partitions=True,
        encoding_type=other.EncodingType.AVERAGE, projection_type=other.ProjectionType.AMS_SKETCH,
        projection_dimension=16,
    )  # fmt: skip
    sets, arrays = TokenSets.of(documents), [one.numpy() for one in documents]
    ways = {
        "ours": lambda: encoder.documents(sets),
        "port": lambda: other.generate_document_fde_batch(arrays, settings),
    }
    return interleaved(ways, len(documents))["port"]


def tokens_of(data: str, cache: Path | None) -> dict[str, Any]:
    if cache is not None and cache.exists():
        return dict(torch.load(cache, weights_only=True))
    from lessen.data.collection import read_cranfield
    from lessen.tasks.retrieval.readers import TextReader

    held, reader = read_cranfield(Path(data)), TextReader("minilm-l6", length=LENGTH)
    made = {
        "docs": [one.half() for one in reader.tokens([text or "." for text in held.documents])],
        "queries": [one.half() for one in reader.tokens(held.queries)],
    }
    if cache is not None:
        torch.save(made, cache)
    return made


def heuristic(query: torch.Tensor, sets: TokenSets, owner: torch.Tensor, depth: int) -> list[int]:
    """Return documents in the order of the single-vector heuristic, without repeats: nearest tokens, rank by rank."""
    near = (query @ sets.tokens.t()).topk(depth, dim=1).indices
    return list(dict.fromkeys(owner[near.t().reshape(-1)].tolist()))


def candidates(orders: list[list[int]], truth: torch.Tensor, share: float) -> int | None:
    """Return the fewest candidates a query whose best `truth` [Q, k] hold that share, on average."""
    places = np.full(truth.shape, np.inf)
    for row, order in enumerate(orders):
        rank = {document: place for place, document in enumerate(order)}
        places[row] = [rank.get(int(one), np.inf) for one in truth[row]]
    found = np.sort(places.ravel())
    needed = found[int(np.ceil(share * found.size)) - 1]
    return int(needed) + 1 if np.isfinite(needed) else None


def cranfield(data: str, cache: Path | None) -> None:
    held = tokens_of(data, cache)
    sets = TokenSets.of([one.float() for one in held["docs"]])
    queries = [one.float() for one in held["queries"]]
    screen, every = Screen(sets), torch.arange(sets.rows)
    same, rescored, tops = 0, [], []
    start = time.process_time()
    for query in queries:
        found = search(query, screen, 100)
        tops.append(found.numbers)
    seconds = time.process_time() - start
    for query in queries[:60]:
        ten = search(query, screen, 10)
        rescored.append(ten.rescored)
        same += ten.numbers.tolist() == chamfer(query, sets, every).sort(descending=True, stable=True)[1][:10].tolist()
    truth = torch.stack(tops)
    owner = torch.repeat_interleave(every, sets.lengths)
    rows: dict[str, Any] = {}
    orders = [heuristic(query, sets, owner, 500) for query in queries]
    rows["single-vector heuristic, without repeats"] = judged(orders, truth, None)
    mean = torch.stack([one.float().mean(0) for one in held["docs"]])
    asked = torch.stack([one.mean(0) for one in queries])
    rows["mean of tokens"] = judged((asked @ mean.t()).argsort(dim=1, descending=True).tolist(), truth, 4 * sets.dim)
    for repetitions, bits, projected in ((20, 3, 8), (20, 5, 16), (40, 5, 16)):
        encoder = Encoder(Encoding(sets.dim, repetitions, bits, projected))
        documents, wanted = encoder.documents(sets), encoder.queries(queries)
        name = f"MUVERA {encoder.encoding.width}"
        flat = (wanted @ documents.t()).argsort(dim=1, descending=True).tolist()
        rows[name] = judged(flat, truth, documents.shape[1] * 4)
        for said, index in (
            ("int8", Int8Vectors.of(documents)), ("4 bits", RotatedVectors.of(documents, bits=4)),
            ("1 bit", RotatedVectors.of(documents, bits=1)),
        ):  # fmt: skip
            orders = index(wanted).argsort(dim=1, descending=True).tolist()
            rows[f"{name}, {said}"] = judged(orders, truth, index.row_bytes, flat)
    write("cranfield", {
        "documents": sets.rows, "tokens": sets.count, "dim": sets.dim, "queries": len(queries), "length": LENGTH,
        "exact": {"same_top_10_of_60_queries": same, "rescored_for_10": float(np.mean(rescored)),
                  "cpu_ms_a_query_for_100": round(1e3 * seconds / len(queries), 2)}, "rows": rows,
    })  # fmt: skip
    for name, row in rows.items():
        print(name, row)
    print("same top 10 in", same, "of 60; rescored", np.mean(rescored))


def real_times(queries: list[torch.Tensor], sets: TokenSets, screen: Screen) -> dict[str, Any]:
    """Return what real queries take, processor microseconds a document, and the median ratio to the first.

    maxsim-cpu 0.1.0 ends the process on these documents (384 numbers a token) and is left out.
    """
    parts = list(sets.tokens.split(sets.lengths.tolist()))
    ways: dict[str, Callable[[], Any]] = {
        "exact top 10 behind the screen": lambda: [search(query, screen, 10) for query in queries],
        "the screen alone": lambda: [screen.scores(query) for query in queries],
        "torch, one document at a time": lambda: [[(d @ q.t()).amax(0).sum() for d in parts] for q in queries],
        "torch, segments": lambda: [chamfer(query, sets, torch.arange(sets.rows)) for query in queries],
    }
    return interleaved(ways, sets.rows * len(queries))


def judged(
    orders: list[list[int]], truth: torch.Tensor, size: int | None, against: list[list[int]] | None = None
) -> dict[str, Any]:
    """Return what 100 candidates hold of the exact ten and hundred best, and how many candidates hold most of ten."""
    first = torch.tensor([order[:100] + [-1] * (100 - len(order[:100])) for order in orders])
    row: dict[str, Any] = {"bytes_a_document": size}
    each = shares(first, truth[:, :10])
    row["of_10_in_100"] = recall(each, 10)
    row["of_100_in_100"] = recall(shares(first, truth), 100)
    row["candidates"] = {f"{s:.0%}": candidates(orders, truth[:, :10], s) for s in (0.8, 0.9, 0.95)}
    row["candidates_for_best"] = {f"{s:.0%}": candidates(orders, truth[:, :1], s) for s in (0.8, 0.9, 0.95)}
    row["candidates_for_100"] = {f"{s:.0%}": candidates(orders, truth, s) for s in (0.8, 0.9)}
    if against is not None:
        base = shares(torch.tensor([order[:100] for order in against]), truth[:, :10])
        change = each - base
        draws = np.random.default_rng(0).integers(0, len(change), (10_000, len(change)))
        ends = np.quantile(change[draws].mean(1), [0.025, 0.975])
        row["change_from_float32"] = [round(float(one), 4) for one in (change.mean(), *ends)]
    return row


def faceted(count: int, asked: int, about: float, seed: int) -> tuple[TokenSets, list[torch.Tensor]]:
    """Return documents of some 40 tokens of 64 numbers, and queries of 12 words of one of them each, drawn anew."""
    draw, words, dim = np.random.default_rng(seed), 5000, 64
    torch.manual_seed(seed)
    unit = torch.nn.functional.normalize
    vocabulary, topics = unit(torch.randn(words, dim), dim=1), about * unit(torch.randn(count, dim), dim=1)
    chance = 1 / np.arange(1, words + 1)
    lengths = np.clip(draw.lognormal(np.log(40), 0.4, count), 10, 120).astype(int)
    texts = [draw.choice(words, length, p=chance / chance.sum()) for length in lengths]

    def tokens(document: int, text: np.ndarray) -> torch.Tensor:
        return unit(vocabulary[text] + topics[document] + 0.5 * torch.randn(len(text), dim) / dim**0.5, dim=1)

    documents = [tokens(number, text) for number, text in enumerate(texts)]
    chosen = draw.choice(count, asked, replace=False)
    return TokenSets.of(documents), [tokens(one, draw.choice(texts[one], 12)) for one in chosen]


def drawn_candidates(count: int = 5000, asked: int = 100, seeds: int = 3) -> None:
    """Write how many candidates hold the exact best document, and the ten best, on drawn sets."""
    found: dict[str, Any] = {}
    for about in (0.25, 0.5):
        orders: dict[str, list[list[int]]] = {}
        best = []
        for seed in range(seeds):
            sets, queries = faceted(count, asked, about, seed)
            screen, owner = Screen(sets), torch.repeat_interleave(torch.arange(sets.rows), sets.lengths)
            best += [search(query, screen, 10).numbers for query in queries]
            encoder = Encoder(Encoding(sets.dim, 20, 5, 16))
            flat = encoder.queries(queries) @ encoder.documents(sets).t()
            means = torch.stack([one.mean(0) for one in sets.tokens.split(sets.lengths.tolist())])
            asking = torch.stack([one.mean(0) for one in queries])
            for name, own in (
                ("single-vector heuristic, without repeats", [heuristic(q, sets, owner, 4000) for q in queries]),
                ("mean of tokens", (asking @ means.t()).argsort(dim=1, descending=True).tolist()),
                (f"MUVERA {encoder.encoding.width}", flat.argsort(dim=1, descending=True).tolist()),
            ):
                orders.setdefault(name, []).extend(own)
        truth = torch.stack(best)
        found[f"{about}"] = {
            name: {
                "best": {f"{s:.0%}": candidates(own, truth[:, :1], s) for s in (0.8, 0.9, 0.95)},
                "ten best": {f"{s:.0%}": candidates(own, truth, s) for s in (0.8, 0.9, 0.95)},
            }
            for name, own in orders.items()
        }
        print(about, json.dumps(found[f"{about}"], indent=1), flush=True)
    write("drawn", {"documents": count, "queries": asked * seeds, "seeds": seeds, "about": found})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("speed", "cranfield", "times", "drawn"))
    parser.add_argument("--port")
    parser.add_argument("--data")
    parser.add_argument("--cache", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.part == "speed":
        speed(asked.port)
    elif asked.part == "drawn":
        drawn_candidates()
    elif asked.part == "cranfield":
        cranfield(asked.data, asked.cache)
    else:
        held = tokens_of(asked.data, asked.cache)
        sets = TokenSets.of([one.float() for one in held["docs"]])
        found = real_times([one.float() for one in held["queries"][:4]], sets, Screen(sets))
        write("times", {"documents": sets.rows, "tokens": sets.count, "dim": sets.dim, "queries": 4, "ways": found})
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
