"""The learning rate of every step, in closed form, so that a training resumes from the number of its step.

    rate ^        ________ constant, plateau (one level, lowered at an epoch without improvement)
         |       /  `-._
         |      /       `-._ linear, cosine: fall in the last `decay_steps` to `minimum_learning_rate`
         +-----/------------`-> step
           warmup_steps

`cosine` is low + (high - low) (1 + cos(pi t / T)) / 2 (SGDR, arXiv 1608.03983) and `linear` low + (high - low)
(T - t) / T, with t steps of the fall done and T in all. Step s of the warm-up, counted from 0, has the part
(s + 1) / warmup_steps; where `decay_steps` reaches into the warm-up, the lower of the two counts.
"""

from __future__ import annotations

import math

from lessen.errors import ConfigError
from lessen.train.settings import FitSettings


class Schedule:
    """The learning rate of one training.

    Args:
        total: steps of the whole training; only `cosine` and `linear` need it.

    Raises:
        ConfigError: the parts of the schedule take more steps than the training has.
    """

    def __init__(self, settings: FitSettings, total: int | None = None) -> None:
        self.settings = settings
        self.level = settings.learning_rate
        """The rate that warm-up leads to; `plateau` lowers it."""
        self.total = total
        self.first = self.length = 0
        """First step of the fall, and its steps."""
        if falls(settings):
            if total is None:
                raise ConfigError(f"the schedule {settings.schedule} must know how many steps there are")
            self.length = settings.decay_steps or max(1, total - settings.warmup_steps)
            self.first = total - self.length
            if max(settings.warmup_steps, self.length) > total:
                raise ConfigError(
                    f"training has {total} steps, too few for warmup_steps = {settings.warmup_steps} and a fall "
                    f"over {self.length}; train longer or lower them"
                )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warmed = self.level * min(1.0, (step + 1) / max(1, self.settings.warmup_steps))
        return min(warmed, self._unwarmed(step))

    def _unwarmed(self, step: int) -> float:
        done = step - self.first
        if not self.length or done < 0:
            return self.level
        low = self.settings.minimum_learning_rate
        left = max(0, self.length - done) / self.length
        if self.settings.schedule == "cosine":
            left = (1.0 + math.cos(math.pi * min(done, self.length) / self.length)) / 2.0
        return low + (self.level - low) * left

    def falling(self, step: int) -> bool:
        """Say whether the rate has begun to fall before this step, so that the total is fixed."""
        return bool(self.length) and step > self.first

    def missed(self) -> None:
        """Note an epoch without improvement."""
        if self.settings.schedule == "plateau":
            lower = max(self.level * self.settings.plateau_factor, self.settings.minimum_learning_rate)
            self.level = min(self.level, lower)


def falls(settings: FitSettings) -> bool:
    """Say whether the rate depends on how many steps are left."""
    return settings.schedule in ("cosine", "linear")
