"""What films and large pictures cost a language model by each way of showing them, and what a question costs Goldfish.

    python -m benchmarks.tokens.video [--clips 1000]

Ways: closed forms at the published shapes (frames or tiles of 576 tokens), which tests compare with torch's counter.
Goldfish: one folder of clips with two documents each grows to `--clips`; the same questions are asked at each size, and
their processor time, the words an answer is given and the tokens it would have been without are kept.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lessen.data.video import FrameVideo
from lessen.environment import environment
from lessen.files import atomic_write, dump_json
from lessen.retrieval.goldfish import Goldfish, Settings
from lessen.retrieval.goldfish_clips import context
from lessen.tokens.visual.free_video import Paths
from lessen.tokens.visual.fused import ADEMVL
from lessen.tokens.visual.hires import HiResLLaVA
from lessen.tokens.visual.macs import LayerShape, prefill_macs
from lessen.tokens.visual.slime import SliME

RESULTS = Path(__file__).parents[1] / "results" / "tokens_video.json"
WORDS, GRID, VISION, LAYERS = 64, 24, 1024, 32
QUESTIONS, DIM, NOUNS = 20, 256, 4000
FRAMES_OF_A_CLIP = 45 * 64
"""Visual tokens of a clip in the paper's short-video model."""


class Words:
    """An encoder of texts without weights: words hashed to directions."""

    identity = {"kind": "text", "name": "hashed words", "digest": f"hashed-words-{DIM}"}

    def vectors(self, texts: list[str], names: list[str]) -> Tensor:
        rows = torch.zeros(len(texts), DIM)
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                seed = sum(ord(letter) * 131**place for place, letter in enumerate(word)) % 2**31
                row += torch.randn(DIM, generator=torch.Generator().manual_seed(seed))
        return torch.nn.functional.normalize(rows, dim=1)


def ways() -> Iterator[dict[str, Any]]:
    """Yield tokens, decoder multiply-adds and bytes of keys and values of each way, at the shape of LLaMA-7B."""
    layer = LayerShape(4096, 4096, 4096, 11008)
    grid, one = (GRID, GRID), GRID * GRID
    with torch.device("meta"):
        tiles = SliME(VISION, 4096)
        kept = SliME(VISION, 4096, keep=288)
        slices = HiResLLaVA(VISION, 4096, (2, 3), (12, 12))
        memory = ADEMVL(VISION, 4096, layers=24)
    projector = VISION * 4096 + 4096 * 4096
    shown = [
        ("50 frames", "all tokens", 50 * one, 50 * one * projector),
        ("50 frames", "Free Video-LLM", Paths().tokens(50, grid), 50 * one * projector),
        ("50 frames", "Free Video-LLM, no region", Paths(roi=1).tokens(50, grid), 50 * one * projector),
        ("overview and 6 tiles", "all tokens", 7 * one, 7 * one * projector),
        ("overview and 6 tiles", "SliME, all of tiles", tiles.tokens(6, one), tiles.macs(6, one, WORDS, projector)),
        ("overview and 6 tiles", "SliME, 288 of tiles", kept.tokens(6, one), kept.macs(6, one, WORDS, projector)),
        (
            "overview and 6 tiles", "HiRes-LLaVA", slices.tokens(one),
            slices.sampler.macs(6 * one, 144) + (one + 144) * projector,
        ),
        ("one picture", "all tokens", one, one * projector),
        ("one picture", "ADEM-VL", 1, memory.macs(WORDS + 1, LAYERS)),
    ]  # fmt: skip
    for what, way, tokens, before in shown:
        length = WORDS + tokens
        yield {
            "shown": what, "way": way, "visual_tokens": tokens, "macs_before": before,
            "macs_decoder": prefill_macs([layer] * LAYERS, [length] * LAYERS),
            "kv_bytes": LAYERS * layer.cache_bytes(length),
        }  # fmt: skip


def told(number: int) -> dict[str, str]:
    """Return the documents of a clip; its noun names it."""
    draw = torch.Generator().manual_seed(number)
    others = torch.randint(0, NOUNS, (12,), generator=draw).tolist()
    return {
        "summary": f"someone shows thing{number} near " + " ".join(f"noise{one}" for one in others[:6]),
        "subtitles": f"look here is thing{number} and " + " ".join(f"noise{one}" for one in others[6:]),
    }


def questions(clips: int) -> list[int]:
    """Return the numbers of clips that are asked for, evenly spread."""
    return [clips * place // QUESTIONS for place in range(QUESTIONS)]


def goldfish(sizes: list[int], k: int) -> Iterator[dict[str, Any]]:
    """Yield what questions cost as the folder grows."""
    with tempfile.TemporaryDirectory() as place:
        encoder = Words()
        index = Goldfish.create(Path(place) / "films", Settings(describer="drawn", clip=1.0, frames=1), encoder)
        held = 0
        for size in sizes:
            start = time.process_time()
            frame = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
            video = FrameVideo(frame.expand(size - held, -1, -1, -1), name=f"to {size}")
            index.add(f"film{size:06d}", video, lambda _frames, at, _end, first=held: told(first + int(at)))
            made, held = time.process_time() - start, size
            times, words, right = [], [], []
            for number in questions(size) * 3:
                asked = encoder.vectors([f"where is thing{number}"], ["question"])[0]
                start = time.process_time()
                found = index.find(asked, k)
                text = context(found)
                times.append(1e3 * (time.process_time() - start))
                words.append(len(text.split()))
                right.append(f"thing{number} " in text)
            yield {
                "clips": size, "documents": len(index), "k": k, "ms_cpu_question": statistics.median(times),
                "words_for_the_answer": statistics.mean(words), "recall": statistics.mean(right),
                "visual_tokens_of_all_clips": size * FRAMES_OF_A_CLIP, "seconds_cpu_added": made,
                "index_bytes": index._index.file_bytes if index._index else 0,
            }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("-k", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = list(ways())
    for row in rows:
        print(
            f"{row['shown']:22} {row['way']:28} {row['visual_tokens']:6} {row['macs_decoder'] / 1e12:8.2f} T",
            flush=True,
        )
    sizes = sorted({1, 10, 100, given.clips})
    asked = []
    for row in goldfish(sizes, given.k):
        asked.append(row)
        print({name: value if isinstance(value, int) else round(value, 3) for name, value in row.items()}, flush=True)
    done = {
        "command": " ".join(["python", "-m", "benchmarks.tokens.video", *sys.argv[1:]]),
        "settings": vars(given), "env": environment(), "ways": rows, "goldfish": asked,
    }  # fmt: skip
    atomic_write(RESULTS, dump_json(done))


if __name__ == "__main__":
    main()
