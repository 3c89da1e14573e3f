"""Optuna's samplers in the place of lessen's own proposals, and trials kept in a storage that a URL names.

The folder of the search stays the record: trials are told to Optuna from it, so that a search resumes without the
storage, and a storage that has them already is told none twice. What it adds is a dashboard, and a choice of samplers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lessen.errors import ConfigError, MissingExtraError, OutputError
from lessen.search.goal import Goal
from lessen.search.propose import Measured
from lessen.search.space import Genome, Space

Sampler = Literal["lessen", "tpe", "nsga2", "random"]
KEY = "genome"
"""Attribute of a trial that says which genome it is."""
PATIENCE = 20
"""Questions a wanted genome: a sampler may ask for what is known already."""


class OptunaSamplers:
    """Proposes genomes by a sampler of Optuna's, with cost and loss to be small."""

    def __init__(self, space: Space, sampler: Sampler, seed: int, storage: str | None, name: str) -> None:
        """Open the study. Raises MissingExtraError without optuna, ConfigError for a storage that cannot be opened."""
        try:
            import optuna as installed
        except ImportError as error:
            raise MissingExtraError("search", error.name or "optuna", f"--sampler {sampler}") from error
        optuna: Any = installed  # types must hold where it is not installed too
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.optuna, self.space = optuna, space
        chosen = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
            "nsga2": lambda: optuna.samplers.NSGAIISampler(population_size=20, seed=seed),
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        }[sampler]()
        try:
            self.study = optuna.create_study(
                storage=storage,
                sampler=chosen,
                study_name=f"{name} {space.digest[:12]}",
                directions=["minimize", "minimize"],
                load_if_exists=True,
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"--storage {storage!r} cannot be opened ({reason}); write a URL such as sqlite:///trials.db or "
                "postgresql://user@host/name, its driver installed"
            ) from error
        self.distributions = {
            f"slot {number}": optuna.distributions.CategoricalDistribution(list(range(width)))
            for number, width in enumerate(space.widths, 1)
        }
        self.asked: dict[Genome, Any] = {}
        """Trials that the sampler has asked for and nobody has told it of."""

    def __call__(
        self, space: Space, measured: Mapping[Genome, Measured], count: int, *, goal: Goal | None = None, seed: int = 0
    ) -> list[Genome]:
        """Return up to `count` genomes that were not measured; signature of `propose`. Raises OutputError."""
        del goal, seed
        try:
            self._tell(measured)
            return self._ask(space, measured, count)
        except self.optuna.exceptions.StorageInternalError as error:
            raise OutputError(f"Optuna's storage cannot be written: {' '.join(str(error).split())[:200]}") from error

    def _tell(self, measured: Mapping[Genome, Measured]) -> None:
        told = {tuple(trial.user_attrs[KEY]) for trial in self.study.trials
                if KEY in trial.user_attrs and trial.state.is_finished()}  # fmt: skip
        for genome, found in measured.items():
            if genome in told:
                continue
            values = None if found.cost is None or found.loss is None else [found.cost, found.loss]
            trial = self.asked.pop(genome, None)
            state = self.optuna.trial.TrialState.COMPLETE if values else self.optuna.trial.TrialState.FAIL
            if trial is not None:
                self.study.tell(trial, values, state=state)
            else:
                self.study.add_trial(
                    self.optuna.trial.create_trial(
                        state=state, values=values, params=self._params(genome), distributions=self.distributions,
                        user_attrs={KEY: list(genome)},
                    )
                )  # fmt: skip

    def _ask(self, space: Space, measured: Mapping[Genome, Measured], count: int) -> list[Genome]:
        found: list[Genome] = []
        for _ in range(PATIENCE * count):
            if len(found) >= count or len(measured) + len(found) >= space.size:
                break
            trial = self.study.ask(fixed_distributions=self.distributions)
            genome = tuple(int(trial.params[name]) for name in self.distributions)
            known = measured.get(genome)
            nothing = all(slot.options[pick] is None for slot, pick in zip(space.slots, genome, strict=True))
            if known is None and genome not in found and not nothing:
                trial.set_user_attr(KEY, list(genome))
                self.asked[genome] = trial
                found.append(genome)
            elif known is not None and known.cost is not None and known.loss is not None:
                self.study.tell(trial, [known.cost, known.loss])
            else:
                self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
        return found

    def _params(self, genome: Genome) -> dict[str, int]:
        return dict(zip(self.distributions, genome, strict=True))
