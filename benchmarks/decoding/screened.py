"""The screened head: is its token the bf16 head's at every position, how many bytes does it read, how long is it?

    python -m benchmarks.decoding.screened [--positions 10000] [--pairs 101]

SmolLM2-135M-Instruct with its weights rounded to bf16: 49,152 rows of 576. Hidden vectors are those of news text (the
test and train documents of `lee_background.cor`), in windows of 256 tokens, float32. The head's token is the arg-max of
float64 products of the bf16 rows, the first of equal ones; torch's own float32 products are compared too. Bytes: 8 bit
codes and three float32 numbers a row, and two bytes a weight for every row that is scored exactly, against two bytes a
weight for all. Times: one hidden vector, one thread, in turns with the head in bf16 and in float32.
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
from lessen.decoding.screened_head import Screen
from lessen.environment import environment
from lessen.files import atomic_write, dump_json
from lessen.tasks.language.perplexity import LanguageTask

RESULT = Path(__file__).parents[1] / "results" / "decoding_screened.json"
WINDOW = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=101)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model, words = load_model(SMOLLM2)
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
    """Compare tokens at every position, one hidden vector at a time, as decoding does."""
    wide, single = exact.double(), exact.float()
    right = same = 0
    rescored: list[int] = []
    for piece in hidden.split(64):
        wanted, stock = (piece.double() @ wide.t()).argmax(1), functional.linear(piece, single).argmax(1)
        found = [screen.find(one[None]) for one in piece]
        tokens = torch.cat([one.best for one in found])
        right, same = right + int((tokens == wanted).sum()), same + int((tokens == stock).sum())
        rescored += [one.rescored for one in found]
    whole = 2 * exact.numel()
    share = (screen.bytes + 2 * exact.shape[1] * np.array(rescored)) / whole
    return {
        "tokens of the bf16 head (float64 products)": right,
        "tokens of torch's float32 products": same,
        "rows scored exactly": {
            "mean": float(np.mean(rescored)),
            "median": float(np.median(rescored)),
            "most": max(rescored),
        },
        "share of the bf16 head's bytes": {"mean": float(share.mean()), "most": float(share.max())},
    }


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
