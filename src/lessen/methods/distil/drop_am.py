"""DropAM: a model that stays good when optional inputs are left out, because it was trained without them at times."""

from __future__ import annotations

from torch import nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS
from lessen.methods.distil._shared.optional import MissingInputs
from lessen.task import Task


class DropAM(MissingInputs):
    """Train on rows that each lack each optional input with the chance `rate`.

    MR-VPC (arXiv 2403.19221). Nothing is added to the model; what it saves is what the caller then need not fetch:
    a feature store, a transcript, a picture. The step's findings hold the quality on validation with all inputs,
    without each and without any. Differences: the paper's rate was not found, 0.5 is ours; inputs are drawn apart, so
    that rows without any are seen; the best epoch is that of the mean score of complete and empty rows.
    """

    card = Card(
        name="drop-am",
        family="distil",
        summary="Train a model on rows that lack optional inputs now and then, so that they may be skipped.",
        acts_on=ACTS_ON,
        source="arXiv 2403.19221",
        needs=NEEDS,
        claims=CLAIMS,
    )

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train and return the model.

        Raises:
            TaskError: the task cannot train, or its inputs have no optional parts.
            ConfigError: a name is no optional input.
        """
        view, optional = self.dropping(task, context)
        student, settle = self._student(model, task, context)
        retrain.train(student, self.paced(view), context, epochs=self.epochs)
        settle()
        context.findings["score by inputs"] = optional.scores(student)
        return student
