"""Sentences of further pages that are made from committed results or state a setting, by page."""

from __future__ import annotations

import csv
from collections.abc import Iterator

import numpy as np

from benchmarks.guides import RESULTS, read

SETTINGS = {
    "bars": ("BARS-CTR (arXiv 2009.05794 and 2205.09626)", "a difference below 0.001 AUC a reproduction"),
    "checkpoints": ("some 13 % of the rows move between two",),
    "clicks": ("looks at the first 4 MB of the files", "an id that is 3 in one file, 3.0 or 03 in another",
               "A checkpoint that FuxiCTR 2.3 trained"),
    "concepts": ("beyond 512 MB in shards",),
    "decoding": ("fetched the first time (93 MB)", "over about 64 MB of the model's layers",
                 "interval of the median ratio lies below 0.9 as a whole", "llama-cpp-python 0.3.36 for AVX-512"),
    "embeddings": ("takes about 75 MB of memory once a process", "the bar is within 3 %", "unknown (reached: 0.802)",
                   "Memory is within 3 % for every form", "from about 3 % downwards",
                   "together lead from 10 % down to 3 %. Above 10 % a single method", "| 0.8082 (reached: 0.735) |", "| 0.8056 (reached: 0.716) |"),
    "install": ("with Python 3.10 to 3.13", "(2.10 or newer)"),
    "pruning": ("on the colours below at 50 %", "at all three and from all others at 50 and 40 %",
                "at 40 % with intervals apart"),
    "ranking": ("3, 3.0 and 03", "how many of 99 random relabellings score as high; at least 0.01",
                "at 10 % of the rows it keeps"),
    "retrieval": ("One bit a number makes an encoding 32 times smaller",),
    "search": ("at a loss of 0.02 AUC", "race 200 times on the validation rows"),
    "sparsity": ("32 MB of cache",),
    "tokens": ("At 50 % accuracy does not tell", "At 40 % merging costs something"),
    "training": ("(momentum 0.9)",),
    "verdicts": ("Two models that differ on 6 % of the answers", "two accuracies near 0.76 needs six times as many",
                 "The factor c lies between 1.96", "its half width is what the units can resolve, 3.69 / n",
                 "noise of its own of 0.5 and 0.35 points", "(96.6 % at most, by integration)"),
    "visual-video": ("45.3 against 39.9 of Video-LLaVA on Video-MME", "0.77 points over earlier ways"),
    "visual-tokens": ("what FastV loses at 45 %", "must be harsh (30 %;", "those at 45 % were seen)"),
}  # fmt: skip
"""Versions, budgets, planted sizes, arithmetic of a formula: what no result measures."""


def concepts() -> Iterator[str]:
    found = read("artifact_memory")
    writing, loading = found["steps"]["write"], found["steps"]["load"]
    yield (
        f"Writing the artifact of a {found['model_bytes'] / 2**30:.0f} GB model takes "
        f"{writing['above_the_model'] / 1e6:.0f} MB above the model, loading it "
        f"{loading['share_of_largest_shard']:.2f} of a shard"
    )


def decoding() -> Iterator[str]:
    found = read("language_containers")["recipes"]
    dense, small = found["symmetric"]["bytes"]["dense"], found["whole zero points"]["bytes"]["m.gguf"]
    yield f"dequantised to float32, {dense / 1e6:.0f} MB in place of {small / 1e6:.0f} MB"
    token = 2 * 30 * 3 * 64 * 4  # keys and values of 30 layers, 3 heads of 64 float32 numbers
    yield f"in float32 keeps {token / 1e3:.0f} kB a token, {token * 8192 / 1e6:.0f} MB at 8k tokens"
    yield f"SmolLM2 {token / 1e3:.0f} kB a token of keys and values and {49152 * 4 / 1e3:.0f} kB of logits"
    pivot = read("language_kv_intact")["rows"]["fp32, bos"]["pivot"]
    yield f"the largest activation of the first token is {pivot['first']:,.0f}, of all others {pivot['others']:.0f}"


def ranking() -> Iterator[str]:
    lines = (RESULTS / "features-movielens" / "frontier.csv").read_text().splitlines()
    rows = {row["recipe"]: row for row in csv.DictReader(lines)}
    best, chosen = rows["ranked-4"], rows["permutation"]
    reach = min(float(row["auc_difference_low"]) for row in (best, chosen))
    shares = " and ".join(f"{100 * float(row['stored_bytes_share']):.0f} %" for row in (best, chosen))
    yield f"where it was, give or take {-reach:.3f}, with {shares} of the bytes"
    yield f"OptFS at half of the rows loses {-float(rows['optfs-50']['auc_difference']):.3f}"


def retrieval() -> Iterator[str]:
    rows = read("retrieval_late")["cranfield"]["rows"]
    plain, bits = (rows[f"MUVERA 10240{form}"]["of_10_in_100"]["recall"] for form in ("", ", 1 bit"))
    yield f"in 100 candidates one of 10,240 then holds {100 * (plain - bits):.1f} points less of the ten best"


def sparsity() -> Iterator[str]:
    rows = [row for row in read("sparsity_kernel")["results"]["rows"] if row["outputs"] == 2048]
    slower = [1 / row["faster than"][row["best"]][0] for row in rows]
    assert 1.95 < max(slower) < 2.05
    yield f"the sparse product takes {min(slower):.2g} to {max(slower):.0f} times as long as a dense one"
    yield f"Keeping half promises {8 / 5} times at the most (5 bits for 8)"
    found = read("sparsity_tiny")["results"]
    published, drawn = found["settings"]["published bytes"], found["bytes of drawn weights"]
    raw, many, half, few = (drawn[name] for name in ("as drawn", "16 values", "half removed, 15 values", "8 values"))
    yield (
        f"{raw['raw_weights'] // 4:,} weights, {raw['raw_weights']:,} bytes as float32, smallest published file "
        f"{published['smallest file, quantised FlatBuffer']:,}) with 16 values a layer is a file of {many['file']:,} "
        f"bytes for drawn weights: {many['weights']:,} of weights, {many['graph']} of graph, {many['metadata']} of "
        f"metadata; half of the weights removed first, {half['file']:,}; 8 values, {few['file']:,}"
    )


def pruning() -> Iterator[str]:
    found = read("pruning_leaves")["rows"]
    apart = [found[name]["apart"] for name in ("onnx runtime", "llama.cpp")]
    yield f"ONNX Runtime differs by {apart[0]:.0e} of the largest logit".replace("e-0", "e-")
    yield f"llama.cpp (16-bit file) by {100 * apart[1]:.1f} %"
    behind = {size: sum(low > 0 for low in _ahead(size, f"first-order {size}%")) for size in (75, 50, 30)}
    assert all(low > 0 for size in behind for one in ("magnitude {}%", "random {}% #0", "random {}% #1", "random {}% #2")
               for low in _ahead(size, one.format(size)))  # fmt: skip
    even = " and ".join(str(size) for size, seeds in behind.items() if seeds < 2)
    yield f"The first-order ranking does as well at {even} %"
    yield f"falls behind at {' and '.join(str(size) for size, seeds in behind.items() if seeds == 3)} %"


def _ahead(size: int, other: str) -> list[float]:
    """Return the lower ends of how much more VTrans' three seeds get right on CIFAR-10 than another row, paired."""
    rows = read("pruning_cifar")["rows"]
    draws = np.random.default_rng(0).integers(0, 1000, (2000, 1000))
    found = []
    for seed in range(3):
        right = [np.asarray(rows[name]["units"]["accuracy"]) for name in (f"vtrans {size}% #{seed}", other)]
        found.append(float(np.quantile((right[0] - right[1])[draws].mean(1), 0.025)))
    return found


def tokens() -> Iterator[str]:
    for row in read("tokens_mismatch")["rows"]:
        if row["model"] == "reference" and row["target"] == 16 and len(row["seeds"]) == 3:
            share = {name: row[name]["mismatch"]["recovered"] for name in ("right", "loss")}
            said = {name: [f"{100 * part:.0f}" for part in parts] for name, parts in share.items()}
            right, loss = said["right"], said["loss"]
            yield (
                f"the plug-ins bring back {right[0]} % of that in accuracy ({right[1]} to {right[2]} %) and {loss[0]} % "
                f"in cross-entropy ({loss[1]} to {loss[2]} %)"
            )
            whole = [100 * row[name]["change"]["recovered"][0] for name in ("right", "loss")]
            yield f"it is {whole[0]:.0f} % and {whole[1]:.0f} %"


MADE = {"concepts": concepts, "decoding": decoding, "ranking": ranking, "retrieval": retrieval, "sparsity": sparsity,
        "pruning": pruning, "tokens": tokens}  # fmt: skip


def sentences(page: str) -> Iterator[str]:
    """Yield what a page says that a result backs here, then its settings."""
    yield from MADE.get(page, lambda: iter(()))()
    yield from SETTINGS.get(page, ())
