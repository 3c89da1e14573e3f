"""The suite `video` on models that were trained to see time, and on some that were trained not to.

    python -m benchmarks.judges.temporal [--seeds 3] [--videos 40]

A recurrent network of 8,000 parameters learns shape, direction and speed of a moving blob from noisy clips and answers
as its form says. Compact models: another seed, every second frame, all frames in a wrong order, one frame; the same
answers as free sentences; one letter for all. The suite compares each with the first, on drawn clips of which
one copy runs backwards and one at half the speed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.judges.planted import Arrays
from lessen.data.clips import ASPECTS, FRAMES, MIDDLE, PACE, SIDE
from lessen.environment import environment
from lessen.files import atomic_write, dump_json
from lessen.judges import get_judge
from lessen.judges.suite import Suite

RESULTS = Path(__file__).parents[1] / "results" / "judges_temporal.json"
STEPS, BATCH, NOISE = 400, 64, 0.15
WORDS = (("square", "bar"), ("right", "left"), ("fast", "slow"))
ORDERS = {"in order": list(range(FRAMES)), "every second frame": [0, 2, 4, 6], "in a wrong order": None,
          "one frame": [FRAMES // 2]}  # fmt: skip
"""Frames that a model is shown, in training and when it is asked; None: all of them, shuffled anew each time."""


class Watcher(nn.Module):
    """Clips [B, frames, 1, 16, 16] to scores of shape, direction and speed [B, 3, 2], by the frames of `order`."""

    def __init__(self, order: str, form: str = "letter") -> None:
        super().__init__()
        self.order, self.form = order, form
        self.look, self.remember = nn.Linear(SIDE * SIDE, 24), nn.GRU(24, 24, batch_first=True)
        self.say = nn.Linear(24, 6)

    def forward(self, clips: Tensor) -> Tensor:
        frames = ORDERS[self.order]
        shown = clips[:, torch.randperm(FRAMES) if frames is None else frames].flatten(2)
        last = self.remember(torch.relu(self.look(shown)))[0][:, -1]
        scores: Tensor = self.say(last).view(-1, 3, 2)
        return scores


class Watching(Arrays):
    """A task that reads the question and puts the model's answer into its form."""

    name = "watching"

    def __init__(self) -> None:
        super().__init__({}, lambda: Watcher("in order"))

    def fingerprint(self) -> str:
        return "clips"

    def answer_video(self, model: Any, clip: Tensor, prompt: str) -> str:
        about = next(at for at, key in enumerate(("shape", "go?", "move?")) if key in prompt.splitlines()[0])
        word = WORDS[about][int(model(clip[None])[0, about].argmax())]
        if model.form == "sentence":
            return f"I think that it is {word}, as the clip shows."
        if model.form == "constant":
            return "yes" if "Is it" in prompt else "A"
        asked = re.search(r"Is it (\w+)\?", prompt)
        if asked:
            return "yes" if asked[1] == word else "no"
        return next(line[0] for line in prompt.splitlines() if line.endswith(f". {word}"))


def lessons(seed: int) -> Any:
    """Yield noisy clips [64, 8, 1, 16, 16] and what they show, int64 [64, 3]."""
    draw, line = torch.Generator().manual_seed(seed), torch.arange(SIDE) + 0.5
    for _ in range(STEPS):
        told = torch.randint(2, (BATCH, 3), generator=draw)
        places, middles = torch.rand(2, BATCH, generator=draw)
        places, middles = 8 * places + 4, MIDDLE[0] + (MIDDLE[1] - MIDDLE[0]) * middles
        pace = torch.where(told[:, 2] == 1, PACE / 2, PACE)
        moved = middles[:, None] + pace[:, None] * (torch.arange(FRAMES) - (FRAMES - 1) / 2)
        moved = torch.where(told[:, 1:2] == 1, moved.flip(1), moved)
        bar = told[:, 0] == 1
        down = (line - places[:, None]).abs() < torch.where(bar, 4.0, 1.5)[:, None]
        across = (line - moved[..., None]).abs() < torch.where(bar, 0.75, 1.5)[:, None, None]
        pixels = (down[:, None, :, None] & across[:, :, None, :]).float()[:, :, None]
        yield pixels + NOISE * torch.randn(pixels.shape, generator=draw), told


def trained(order: str, seed: int) -> Watcher:
    """Return a model that learned from what `order` shows."""
    torch.manual_seed(seed)
    model = Watcher(order)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for clips, told in lessons(seed):
        loss = F.cross_entropy(model(clips).flatten(0, 1), told.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def as_form(model: Watcher, form: str) -> Watcher:
    """Return the same weights that answer in another form."""
    other = Watcher(model.order, form)
    other.load_state_dict(model.state_dict())
    return other.eval()


def run(seed: int, videos: int) -> list[dict[str, Any]]:
    """Return what the suite says of every compact model of one seed."""
    judge = get_judge({"name": "video", "most": videos, "seed": seed}, task=Watching())
    assert isinstance(judge, Suite)
    reference = trained("in order", seed)
    compact = {"another seed": trained("in order", 100 + seed)}
    compact |= {order: trained(order, 200 + seed) for order in list(ORDERS)[1:]}
    compact |= {"free sentences": as_form(reference, "sentence"), "one letter": as_form(reference, "constant")}
    before, rows = judge.outcomes(reference), []
    for name, model in compact.items():
        torch.manual_seed(seed)
        section = judge.compare(before, judge.outcomes(model))
        found = section.figures
        aspects = {aspect: found[aspect] for aspect in ASPECTS if aspect in found}
        rows.append({
            "model": name, "seed": seed, "aspects": aspects, "read": found["read"], "whole": found["whole roots"],
            "gap": found["temporal gap"], "caught": [each.split(" ")[0] for each in section.caught],
        })  # fmt: skip
        right = {aspect: (round(one["before"], 2), round(one["after"], 2)) for aspect, one in aspects.items()}
        print(name, seed, right, rows[-1]["caught"], flush=True)
    return rows


def main() -> None:
    """Run every seed and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--videos", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    done = {
        "command": " ".join(["python", "-m", "benchmarks.judges.temporal", *sys.argv[1:]]), "settings": vars(given),
        "rows": [row for seed in range(given.seeds) for row in run(seed, given.videos)],
        "load": os.getloadavg(), "threads": 1, "env": environment(),
    }  # fmt: skip
    atomic_write(RESULTS, dump_json(done))


if __name__ == "__main__":
    main()
