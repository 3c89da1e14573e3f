"""The suite `video`: does a video model still perceive time, or only what any frame shows?

TempCompass (Liu et al., arXiv 2403.00476): questions on five aspects, about videos that were reversed, slowed or put in
another order. Frames or visual tokens that were saved cost direction, speed and order first; the average hides it.
Questions hang together by video: intervals leave out one root video with all its copies at a time. Free captions, which
need a language model to grade them, are not asked; the published data forbid commercial use and are yours to bring.

The task answers: `answer_video(model, video, prompt) -> text`; `video` is a path, or a clip [frames, 1, side, side].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lessen import files
from lessen.data.clips import ASPECTS, TASKS, VideoQuestion, drawn_clips, match, read_video_questions
from lessen.errors import DataError
from lessen.judges.reading import evaluated
from lessen.judges.suite import Section, Suite, SuiteOptions, grouped_change, share, table
from lessen.metrics import Floats, MeanMetric, Metric, Outcomes
from lessen.metrics.exact import paired_p
from lessen.metrics.intervals import Z
from lessen.metrics.many import student_quantile
from lessen.task import Split, Task


class RightOfVideos(MeanMetric):
    """Share of questions about videos that are answered right; what cannot be read is wrong."""

    name, title, reads = "video-answers", "right answers about videos", ("right",)

    def each(self, outcomes: Outcomes) -> Floats:
        """Return 1 for each right answer."""
        return outcomes["right"].astype(np.float64)


class VideoOptions(SuiteOptions):
    """What a user may say of the videos."""

    data: str | None = Field(
        None, description="TempCompass's folder with questions/ and videos/; None: clips drawn here"
    )
    most: int = Field(40, ge=2, description="videos a task")
    seed: int = Field(0, ge=0, le=2**31, description="of the clips")


class Video(Suite):
    """Right answers by aspect, before and after, and what one frame alone would give."""

    name, question = "video", "Does it still perceive time?"
    metrics: Mapping[str, Metric] = {"right": RightOfVideos()}
    Options = VideoOptions

    def bind(self, task: Task | None) -> None:
        """Take the task, and read the questions. Raises DataError: there are none."""
        super().bind(task)
        self._clips: dict[str, Tensor] = {}
        if self.options.data is None:
            self._clips, self._questions = drawn_clips(self.options.most, self.options.seed)
        else:
            self._questions = read_video_questions(self.options.data, self.options.most)

    def unable(self, model: nn.Module) -> str:  # noqa: ARG002 - the task answers for it
        """Say whether the task cannot ask about videos."""
        return (
            ""
            if callable(getattr(self.task, "answer_video", None))
            else (
                f"it needs a task that answers about videos: give {self.task.name!r} answer_video(model, video, prompt)"
            )
        )

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:  # noqa: ARG002 - the data are the suite's
        """Return, for each question, whether the answer is right, whether it could be read, and right by one frame."""
        self.check_able(model)
        ask: Any = self.task.answer_video  # type: ignore[attr-defined]
        rows = []
        with evaluated(model), torch.no_grad():
            for each in self._questions:
                video = self._video(each)
                said = match(each, str(ask(model, video, each.prompt)))
                still = False
                if isinstance(video, Tensor):
                    middle = video[len(video) // 2 : len(video) // 2 + 1].expand_as(video)
                    still = bool(match(each, str(ask(model, middle, each.prompt))))
                aspect = ASPECTS.index(each.aspect) if each.aspect in ASPECTS else len(ASPECTS)
                rows.append((bool(said), said is not None, still, TASKS.index(each.task), aspect))
        names = ("right", "read", "still", "task", "aspect")
        columns = {name: np.asarray(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
        roots = np.asarray([each.root for each in self._questions])
        return Outcomes(columns, roots, given=frozenset({"task", "aspect"}))

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return right answers by aspect; caught is an aspect that is proved lost, or a form that is."""
        before.check_same_units(after)
        rows, caught, deltas = [], [], {}
        figures: dict[str, Any] = {}
        present = [at for at in range(len(ASPECTS)) if (before["aspect"] == at).any()]
        wider = student_quantile(1.0 - 0.025 / len(present), 1e6) / Z
        for at in present:
            members, name = before["aspect"] == at, ASPECTS[at]
            found = grouped_change(before, after, "right", members, wider)
            still = float(before["still"][members].mean())
            excess = (found[1] - still) / (found[0] - still) if found[0] > still else float("nan")
            deltas[name] = found[0] - found[1]
            said = f"{100 * (found[1] - found[0]):+.1f} [{100 * found[2]:+.1f}, {100 * found[3]:+.1f}]"
            kept = "-" if np.isnan(excess) else f"{excess:.2f}"
            rows.append((name, f"{int(members.sum())}", share(found[0]), share(found[1]), said, share(still), kept))
            figures[name] = {"before": found[0], "after": found[1], "low": found[2], "high": found[3], "still": still}
            if found[3] < 0:
                caught.append(f"{name} is lost: right answers change by {said} points")
        read = [each["read"].astype(bool) for each in (before, after)]
        lost, gained = int((read[0] & ~read[1]).sum()), int((~read[0] & read[1]).sum())
        if paired_p(lost, gained) < 0.05 and lost > gained:
            caught.append(f"the form is lost: {share(1 - read[1].mean())} of the answers cannot be read")
        timed = [deltas[name] for name in deltas if name != "action"]
        gap = float(np.mean(timed) - deltas.get("action", 0.0)) if timed else 0.0
        strict = [self._whole_roots(each) for each in (before, after)]
        figures |= {"temporal gap": gap, "whole roots": strict, "read": [float(each.mean()) for each in read]}
        lines = (
            f"Time is lost by {100 * gap:+.1f} points more than action. All copies of a video right: "
            f"{share(strict[0])} before, {share(strict[1])} after. Read by the rules: "
            f"{share(read[0].mean())} and {share(read[1].mean())}.",
        )
        columns = (
            "aspect",
            "questions",
            "right, uncompressed",
            "compact",
            "change in points [95 %, for all]",
            "uncompressed, one frame",
            "kept of what time adds",
        )
        return Section(self.name, self.question, tuple(caught), lines, (table("", columns, rows),), figures)

    def _whole_roots(self, outcomes: Outcomes) -> float:
        """Return the share of (root, aspect) of which every question about every copy is right."""
        keys = outcomes["group"].astype(np.int64) * (len(ASPECTS) + 1) + outcomes["aspect"].astype(np.int64)
        codes = np.unique(keys, return_inverse=True)[1].reshape(-1)
        right = np.bincount(codes, outcomes["right"].astype(np.float64)) / np.bincount(codes)
        return float((right == 1.0).mean())

    def _video(self, each: VideoQuestion) -> Tensor | Path:
        if each.video in self._clips:
            return self._clips[each.video]
        place = Path(str(self.options.data)) / "videos"
        found = sorted(place.glob(f"{each.video}.*"))
        if not found:
            raise DataError(f"no video {each.video}.* in {place}")
        return found[0]

    def fingerprint(self) -> str:
        """Return the digest of the questions and their answers."""
        asked = [(each.task, each.aspect, each.video, each.question, each.answer) for each in self._questions]
        return files.digest(files.canonical(asked))
