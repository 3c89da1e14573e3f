"""The screened head: is its token the bf16 head's at every position, how many bytes does it read, how long is it?

    python -m benchmarks.decoding.screened [--positions 10000] [--pairs 101]

SmolLM2-135M-Instruct in bf16: 49,152 rows of 576. Hidden vectors are those of news text (the test and train documents
of `lee_background.cor`), in windows of 256 tokens, as the model gives them. The head's token is the arg-max of
float64 products of the bf16 rows: torch's float32 products are scored again in float64 where they lie within 1 % of the
largest |score| of the best, a thousand times what float32 can be off. torch's own float32 arg-max is compared too.

Vectors are screened eight at a time, as a pass over drafts does, and the first 64 also one by one. Bytes: 8 bit codes
and three float32 numbers a row, and two bytes a weight for every row that any of the eight scores exactly (so that the
share of one vector is no larger), against two bytes a weight for all. Times: one vector, one thread, in turns.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lessen.architectures.loading import SMOLLM2, load_model
from lessen.decoding.packing import median_interval, paired_ratios
from lessen.decoding.screened_head import MOST_ROWS, Screen
from lessen.environment import environment
from lessen.files import atomic_write, dump_json
from lessen.tasks.language.perplexity import LanguageTask

RESULT = Path(__file__).parents[1] / "results" / "decoding_screened.json"
WINDOW, ALONE = 256, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=101)
    parser.add_argument(
        "--float-products", action="store_true", help="exact products of codes in float32: same integers"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.float_products:  # where the int8 kernel is a plain loop; sums stay below 2^24, so that floats are exact
        torch._int_mm = lambda left, right: left.float() @ right.float()
    model, words = load_model(SMOLLM2, "bfloat16" if not chosen.float_products else "float32")
    hidden = states(model, words, chosen.positions)
    exact = model.lm_head.weight.detach().bfloat16()
    start = time.perf_counter()
    screen = Screen(exact)
    made = time.perf_counter() - start
    record = {
        "command": " ".join(["python -m benchmarks.decoding.screened", *sys.argv[1:]]),
        "model": SMOLLM2,
        "rows": len(exact),
        "width": exact.shape[1],
        "positions": len(hidden),
        "seconds to make the screen": made,
        **judged(exact, screen, hidden),
        "times": times(exact, screen, hidden, chosen.pairs),
        "env": environment(1),
    }
    atomic_write(RESULT, dump_json(record))
    print(dump_json(record))


@torch.inference_mode()
def states(model: Any, words: Any, count: int) -> Tensor:
    """Return hidden vectors float32 [count, width], as they go into the head."""
    task = LanguageTask()
    texts = [*task.texts("test"), *task.texts("train")]
    ids = torch.cat([torch.tensor(words(text)["input_ids"]) for text in texts])[:count]
    parts = [model.model(input_ids=piece[None]).last_hidden_state[0] for piece in ids.split(WINDOW)]
    return torch.cat(parts).float()


@torch.inference_mode()
def judged(exact: Tensor, screen: Screen, hidden: Tensor) -> dict[str, Any]:
    """Compare tokens at every position, eight vectors at a time, and the first ones by themselves."""
    single = exact.float()
    right = same = alone = 0
    rescored: list[int] = []
    ones: list[int] = []
    for number, piece in enumerate(hidden.split(MOST_ROWS)):
        logits = functional.linear(piece, single)
        wanted = reference(logits, piece, exact)
        found = screen.find(piece)
        right, same = right + int((found.best == wanted).sum()), same + int((found.best == logits.argmax(1)).sum())
        rescored.append(found.rescored)
        if number * MOST_ROWS < ALONE:
            by_itself = [screen.find(one[None]) for one in piece]
            alone += sum(int(one.best) == int(token) for one, token in zip(by_itself, wanted, strict=True))
            ones += [one.rescored for one in by_itself]
    whole, row = 2 * exact.numel(), 2 * exact.shape[1]
    return {
        "tokens of the bf16 head (float64 products)": right,
        "tokens of torch's float32 products": same,
        "share of the bf16 head's bytes, at most": (screen.bytes + row * max(rescored)) / whole,
        "rows scored exactly, of eight vectors": spread(rescored),
        "one by one": {
            "positions": len(ones),
            "tokens of the bf16 head": alone,
            "rows scored exactly": spread(ones),
            "share of the bf16 head's bytes": (screen.bytes + row * float(np.mean(ones))) / whole,
        },
    }


def reference(logits: Tensor, hidden: Tensor, exact: Tensor) -> Tensor:
    """Return the arg-max in float64, int64 [n]."""
    near = logits >= logits.amax(1, keepdim=True) - 0.01 * logits.abs().amax(1, keepdim=True)
    tokens = []
    for row, vector in zip(near, hidden, strict=True):
        ids = row.nonzero()[:, 0]
        tokens.append(ids[(exact[ids].double() * vector.double()).sum(1).argmax()])
    return torch.stack(tokens)


def spread(counts: list[int]) -> dict[str, float]:
    return {"mean": float(np.mean(counts)), "median": float(np.median(counts)), "most": max(counts)}


def times(exact: Tensor, screen: Screen, hidden: Tensor, pairs: int) -> dict[str, Any]:
    single = exact.float()
    one = hidden[100:101]
    half = one.bfloat16()
    found = {}
    with torch.inference_mode():
        for name, other in (
            ("float32", lambda: functional.linear(one, single).argmax(1)),
            ("bf16", lambda: functional.linear(half, exact).argmax(1)),
        ):
            ratios = paired_ratios(lambda: screen.find(one), other, pairs)
            found[f"of the head in {name}"] = {"median": float(np.median(ratios)), "interval": median_interval(ratios)}
    return found


if __name__ == "__main__":
    main()
