"""The loop's part in sparse training: at every step the masks learn where the schedule stands."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lessen.sparsity.masking import Fading
from lessen.sparsity.schedules import Progress
from lessen.train.hooks import Hook


class Schedule(Hook):
    """Moves the decay and the pattern of masks; they depend on the step alone, so that a resumed training continues."""

    def __init__(self, forms: Sequence[Fading], progress: Progress) -> None:
        self.forms, self.progress = forms, progress

    def start(self, model: nn.Module) -> None:  # noqa: ARG002
        """Put the masks where the training starts."""
        self._move(0)

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        """Put the masks where the next step stands."""
        self._move(step)

    def _move(self, step: int) -> None:
        for form in self.forms:
            form.move(self.progress.decay(step), self.progress.pattern_at(step))
