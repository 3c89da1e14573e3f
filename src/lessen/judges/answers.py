"""What two models answered on the same units, read from the outcomes of whatever task there is.

scores [n, classes], targets     the class of the highest score; its softmax is the confidence
scores [n], labels 0 and 1       yes where the score is above a cut: the one at which the uncompressed model says yes as
                                 often as the labels do; the compact model is held to the same cut
right [n]                        right or wrong, as the task's judge said
answer, wanted [n, places]       what was answered at each place of a text (-1: none), and the right one
nll, tokens                      no answers, only losses
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lessen.judges.suite import CannotAnswer
from lessen.metrics import Array, Floats, Outcomes
from lessen.metrics.base import split_targets
from lessen.metrics.calibration import sigmoid
from lessen.task import Split, Task
from lessen.train.device import device_of, to_device

WORDS = ("ForSequenceClassification", "ForImageClassification", "ForCausalLM", "LMHeadModel", "ForMaskedLM")
"""How classes of host models end whose output is a score for each answer."""


@dataclass(frozen=True)
class Answers:
    """Answers and losses of two models; `None` where the outcomes do not tell."""

    kind: str
    """`classes`, `clicks`, `right`, `places` or `documents`."""
    before: Array | None = None
    after: Array | None = None
    """Answers, integers: [units], or [units, places] with -1 where nothing is answered."""
    right: tuple[Array, Array] | None = None
    """Whether each answer is right, of both models."""
    losses: tuple[Floats, Floats] | None = None
    """What each unit adds to the loss, of both models; higher is worse."""
    loss: str = ""
    """What the loss is, in words."""
    surety: tuple[Floats, Floats] | None = None
    """Chance that each model gives its answer (classes), or a yes (clicks)."""
    wanted: Array | None = None
    """The right answers."""


def read(before: Outcomes, after: Outcomes, suite: str) -> Answers:
    """Return what both models answered. Raises CannotAnswer: the columns hold no answers and no losses."""
    before.check_same_units(after)
    names = before.columns
    if "answer" in names:
        return _places(before, after)
    if "score" in names and "target" in names:
        score = before["score"]
        if score.ndim == 2 and score.shape[1] > 1 and before["target"].ndim == 1:
            return _classes(before, after)
        if score.size == len(score) and np.isin(split_targets(before["target"])[0], (0.0, 1.0)).all():
            return _clicks(before, after)
    if "nll" in names and "tokens" in names:
        losses = [each["nll"].astype(np.float64) / np.maximum(each["tokens"], 1) for each in (before, after)]
        return Answers("documents", losses=(losses[0], losses[1]), loss="nats a token")
    if "right" in names and np.isin(before["right"], (0, 1)).all():
        right = (before["right"].astype(bool), after["right"].astype(bool))
        lost = (1.0 - right[0], 1.0 - right[1])
        return Answers("right", right[0].astype(int), right[1].astype(int), right, lost, "wrong answers")
    raise CannotAnswer(
        f"suite {suite!r}: the task gives {', '.join(before.names)}, which hold no answers that are right or wrong"
    )


def _classes(before: Outcomes, after: Outcomes) -> Answers:
    target = before["target"].astype(np.int64)
    answers, right, surety = [], [], []
    for each in (before, after):
        scores = each["score"].astype(np.float64)
        chance = np.exp(scores - scores.max(axis=1, keepdims=True))
        answers.append(scores.argmax(axis=1))
        right.append(answers[-1] == target)
        surety.append((chance / chance.sum(axis=1, keepdims=True)).max(axis=1))
    losses = (1.0 - right[0], 1.0 - right[1])
    pair = (right[0], right[1])
    return Answers(
        "classes", answers[0], answers[1], pair, losses, "wrong answers", (surety[0], surety[1]), wanted=target
    )


def _clicks(before: Outcomes, after: Outcomes) -> Answers:
    labels = split_targets(before["target"])[0]
    flat = [each["score"].astype(np.float64).reshape(-1) for each in (before, after)]
    cut = float(np.quantile(flat[0], 1.0 - labels.mean(), method="higher"))
    answers = [(scores >= cut).astype(np.int64) for scores in flat]
    losses = [np.logaddexp(0.0, scores) - labels * scores for scores in flat]
    right = (answers[0] == labels, answers[1] == labels)
    chance = (sigmoid(flat[0]), sigmoid(flat[1]))
    return Answers(
        "clicks", answers[0], answers[1], right, (losses[0], losses[1]), "log loss", chance, labels.astype(np.int64)
    )


def _places(before: Outcomes, after: Outcomes) -> Answers:
    wanted = before["wanted"] if "wanted" in before.columns else None
    right = None
    if wanted is not None:
        right = ((before["answer"] == wanted), (after["answer"] == wanted))
    return Answers("places", before["answer"], after["answer"], right, wanted=wanted)


@torch.no_grad()
def answered(task: Task, model: nn.Module, split: Split, suite: str) -> Outcomes:
    """Run a model whose output is a score for every answer at every place of a text; return what it answered.

    Columns `answer` and, where the data say it, `wanted`: int64 [windows, places], -1 where nothing is judged.

    Raises:
        CannotAnswer: the output is no score of answers.
    """
    was_training, found, wanted = model.training, [], []
    model.eval()
    for batch in task.batches(split):
        output = task.forward(model, to_device(batch, device_of(model))).float().cpu()
        target = task.target(batch)
        if not _scores_of(output, target, model):
            model.train(was_training)
            raise CannotAnswer(
                f"suite {suite!r}: {type(model).__name__} gives {tuple(output.shape)} for targets "
                f"{tuple(target.shape)}: no score for each answer, so no answer can flip"
            )
        places = output.argmax(dim=-1).reshape(len(output), -1)
        known = target.reshape(len(output), -1) if target.shape == output.shape[:-1] else None
        if known is not None and not known.is_floating_point():
            places = places.masked_fill(known < 0, -1)
            wanted += list(known.masked_fill(known < 0, -1))
        found += list(places)
    model.train(was_training)
    if not found:
        raise CannotAnswer(f"suite {suite!r}: task {task.name!r} has an empty {split} split")
    columns = {"answer": _padded(found)}
    return Outcomes({**columns, "wanted": _padded(wanted)} if wanted else columns, given=frozenset({"wanted"}))


def _scores_of(output: Tensor, target: Tensor, model: nn.Module) -> bool:
    if output.ndim < 2 or output.shape[-1] < 2:
        return False
    said = not target.is_floating_point() and target.shape == output.shape[:-1]
    return said or type(model).__name__.endswith(WORDS)


def _padded(rows: list[Tensor]) -> Array:
    longest = max(len(row) for row in rows)
    found = np.full((len(rows), longest), -1, np.int64)
    for at, row in enumerate(rows):
        found[at, : len(row)] = row.numpy()
    return found
