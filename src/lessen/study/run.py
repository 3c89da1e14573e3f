"""Running a study: references, then compression and quality in parallel, then timing alone in one process.

Timing comes last and alone so that parallel jobs never disturb it, and it times what lies on disk. Every finished
(recipe, seed) is one file; `measurements.jsonl` is compiled from those files in the order of the study.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lessen import files
from lessen.artifact import folder as artifact
from lessen.environment import environment
from lessen.errors import ConfigError, nearest
from lessen.frontier.evidence import EVIDENCE
from lessen.frontier.seal import sealed
from lessen.log import SILENT, Log
from lessen.measure.latency import Latency
from lessen.measure.memory import Peak, PeakMeter
from lessen.measure.record import Measurement, measure_latency, reference_latency, with_latency
from lessen.metrics import describe_metrics
from lessen.recipe import Recipe
from lessen.study.engine import Engine, InlineEngine, Outcome
from lessen.study.folder import StudyFolder
from lessen.study.jobs import (
    LOG,
    STANDARDS,
    Failure,
    Job,
    Work,
    as_error,
    compress_one,
    description_of,
    fit_baselines,
    judge_source_of,
    known_compressed,
    known_reference,
    metric_name,
    perform,
    plain,
    planned_steps,
    source_of,
    train_reference,
)
from lessen.study.rehearsal import check_budgets
from lessen.study.schema import Study, named
from lessen.study.stopping import Stopping
from lessen.train.device import find_device

Values = dict[str, Any]


@dataclass(frozen=True)
class StudyResult:
    """The folder of a study and what it measured, in the order of the study."""

    out: Path
    records: list[Values]
    left: int = 0
    """Runs that were left for later: by `only`, or because the time was up."""

    @property
    def failed(self) -> list[Values]:
        """Records of the runs that failed, each with its one-line `error`."""
        return [record for record in self.records if record["status"] != "ok"]


def run(
    study: Study,
    out: Path | str,
    *,
    engine: Engine | None = None,
    resume: bool = False,
    only: str | frozenset[str] | None = None,
    seconds: float | None = None,
    log: Log = SILENT,
) -> StudyResult:
    """Run what is not finished of `study` and write its files under `out`.

    A recipe that fails is recorded with its reason and the study goes on.

    Args:
        only: glob over recipe names, or the names themselves; the others are left for later.
        seconds: start nothing new after this time; what runs is finished, and the rest is left for later.

    Raises:
        ConfigError: `only` matches no recipe.
        OutputError: `out` cannot be written, holds something else or a different study, or this study without `resume`.
        BudgetError: no recipe can reach the share that it asks for; found before any reference is trained.
        InputError, EnvironmentFault: a reference could not be trained, so that nothing can be compared.
        KeyboardInterrupt: stopped by the user; what was finished is in the files.
    """
    folder = StudyFolder(Path(out))
    chosen = only if isinstance(only, frozenset) else _chosen(study, only)
    place = engine or InlineEngine()
    with folder.opened(study.describe(), resume=resume):
        token = LOG.set(log)
        try:
            end = None if seconds is None else time.monotonic() + seconds
            return _Running(study, folder, place, log, chosen, end).run()
        finally:
            place.close()
            LOG.reset(token)


class _Running:
    """One run of a study in its opened folder."""

    def __init__(
        self, study: Study, folder: StudyFolder, engine: Engine, log: Log, chosen: frozenset[str], end: float | None
    ) -> None:
        self.study, self.folder, self.engine, self.log = study, folder, engine, log
        self.chosen, self.end, self.device = chosen, end, find_device(study.device)
        self.task = study.task
        self._peaks: dict[int, Values] = {}
        self.stopping: Stopping | None = None
        self.order = [(recipe.name, seed) for recipe, seed in study.runs()]

    def run(self) -> StudyResult:
        """Do what is left, stage by stage."""
        left = [item for item in self.study.runs() if item[0].name in self.chosen and not self._finished(*item)]
        if left or not self._beside_complete():
            references: dict[int, Values] = {}
            if self.study.stop_when_certain:
                compressed = self._seed_by_seed(left, references)
            else:
                references |= self._references(self.study.seeds)
                compressed = self._compress(left, references)
            self.engine.close()  # idle workers would still share the machine with the timing
            self._time(compressed, references)
        records = self.folder.compile(self.order)
        known = {(record["recipe"], record["seed"]) for record in records}
        missing = [item for item in self.order if item not in known and not self._skips(*item)]
        return StudyResult(self.folder.root, records, len(missing))

    def _finished(self, recipe: Recipe, seed: int) -> bool:
        return self.folder.finished(recipe.name, recipe.hash, seed) is not None

    def _beside_complete(self) -> bool:
        names = ["noise.json", "notes.json", *(path.name for path in self.folder.root.glob("baselines.json"))]
        return all(map(self.folder.holds_beside, names))

    # -- stages ------------------------------------------------------------------------------------------------------
    def _seed_by_seed(
        self, left: list[tuple[Recipe, int]], references: dict[int, Values]
    ) -> list[tuple[Recipe, Values]]:
        """Compress and judge one seed after the other; leave out recipes whose verdict is certain."""
        ready = []
        stopping = self.stopping = Stopping(self.study, self.folder)
        for seed in self.study.seeds:
            now = [item for item in left if item[1] == seed and not stopping.skips(item[0].name, seed)]
            if now or self.folder.reference(seed).is_dir():
                references |= self._references([seed])
                ready += self._compress(now, references)
                stopping.look(seed, references)
        return ready

    def _skips(self, recipe: str, seed: int) -> bool:
        return self.stopping is not None and self.stopping.skips(recipe, seed)

    def _references(self, seeds: Sequence[int]) -> dict[int, Values]:
        """Train the reference of each seed, or read it back. A study without them has nothing to compare."""
        found = {seed: known for seed in seeds if (known := known_reference(self.folder, seed)) is not None}
        jobs = [self._job(Recipe([]), seed) for seed in seeds if seed not in found]
        if jobs:
            check_budgets([recipe for recipe in self.study.recipes if recipe.name in self.chosen], self.task, self.log)
        for _, job, value in self._outcomes("reference models", [(train_reference, job) for job in jobs]):
            if isinstance(value, Failure):
                raise as_error(value, f"the reference of seed {job.seed}")
            found[job.seed] = value
        return found

    def _compress(
        self, left: list[tuple[Recipe, int]], references: Mapping[int, Values]
    ) -> list[tuple[Recipe, Values]]:
        """Compress and judge in parallel; return what is ready to be timed, in the order of the study."""
        ready: dict[tuple[str, int], Values] = {}
        jobs = []
        for recipe, seed in left:
            known = known_compressed(self.folder, recipe, seed)
            if known is None:
                jobs.append(self._job(recipe, seed))
            else:
                ready[recipe.name, seed] = known
        items: list[tuple[Work, Job]] = [(compress_one, job) for job in jobs]
        if self._wants_baselines():  # first, because they may take longest
            items.insert(0, (fit_baselines, self._job(Recipe([]), self.study.seeds[0])))
        for work, job, value in self._outcomes("compress and judge", items):
            key = (job.recipe.name, job.seed)
            if work is fit_baselines:
                self._write_baselines(value)
            elif isinstance(value, Failure):
                if value.fatal:
                    raise as_error(value, f"recipe {key[0]!r}, seed {key[1]}")
                self.log.note(f"recipe {key[0]!r}, seed {key[1]} failed: {value.message}")
                self._write_failure(key, value, references[key[1]])
            else:
                ready[key] = value
        by_name = {recipe.name: recipe for recipe in self.study.recipes}
        return [(by_name[name], ready[name, seed]) for name, seed in self.order if (name, seed) in ready]

    def _time(self, compressed: list[tuple[Recipe, Values]], references: dict[int, Values]) -> None:
        """Time each compact model against its reference, alone; then the reference against itself."""
        with self._peak_meter() as meter:
            for done, (recipe, value) in enumerate(compressed):
                if self._time_is_up():
                    return
                self.log.progress("time in pairs", done, len(compressed))
                self._measure(recipe, value, references[value["seed"]], meter)
            if compressed:
                self.log.progress("time in pairs", len(compressed), len(compressed))
        self._write_beside()

    # -- one run -----------------------------------------------------------------------------------------------------
    def _measure(self, recipe: Recipe, value: Values, reference: Values, meter: PeakMeter | None) -> None:
        seed, place = value["seed"], self.folder.artifact(recipe.name, value["seed"])
        # peak memory first: it waits until the child process is up and idle, so that timing has the machine to itself
        before = {**reference["cost"], **self._reference_peak(seed, meter)}
        after = {**value["cost"], **_peak(meter, place)}
        base = self._load_reference(seed)
        compact = artifact.load(place, model=base).to(self.device)
        latency = self._latency(base.to(self.device), compact)
        cost, reference_cost = with_latency(after, latency), reference_latency(before, latency)
        record = self._record(recipe, seed, value, {**reference, "cost": reference_cost}, cost=cost)
        text = files.dump_json(record)
        artifact.attach(place, {"measurement.json": text})
        files.atomic_write(self.folder.run_file(recipe.name, seed), text)
        self.folder.compressed_file(recipe.name, seed).unlink(missing_ok=True)
        self.folder.compile(self.order)

    def _reference_peak(self, seed: int, meter: PeakMeter | None) -> Values:
        if seed not in self._peaks:
            self._peaks[seed] = _peak(meter, self.folder.reference(seed))
        return self._peaks[seed]

    def _write_failure(self, key: tuple[str, int], failure: Failure, reference: Values) -> None:
        recipe = next(recipe for recipe in self.study.recipes if recipe.name == key[0])
        nothing: Values = {"steps": planned_steps(recipe), "quality": {}, "quality_ci": {}}
        record = self._record(recipe, key[1], nothing, reference, cost={}, error=failure.message)
        self.folder.write_json(self.folder.run_file(*key), record)
        self.folder.compile(self.order)

    def _record(
        self, recipe: Recipe, seed: int, value: Values, reference: Values, *, cost: Values, error: str | None = None
    ) -> Values:
        limits = reference.get(STANDARDS) or {}
        metrics = {name: {**told, **limits.get(name, {})} for name, told in self._metrics.items()}
        lower = [name for name, told in metrics.items() if not told["higher_is_better"]]
        measurement = Measurement(
            study=self.study.name,
            task=self.task.describe(),
            recipe=recipe.name,
            recipe_hash=recipe.hash,
            seed=seed,
            steps=value["steps"],
            quality=value["quality"],
            quality_ci=value["quality_ci"],
            cost=cost,
            reference={key: reference[key] for key in ("quality", "quality_ci", "cost")},
            data_fingerprint=self._fingerprint,
            metrics=metrics,
            env=environment(self.study.measure.threads),
            difference_sd=value.get("difference_sd", {}),
            status="failed" if error else "ok",
            error=error,
        )
        evidence = {**(reference.get(EVIDENCE) or {}), **(value.get(EVIDENCE) or {})}
        curve = {"curve": recipe.curve} if recipe.curve else {}
        return sealed(plain({**measurement.record(), "lower_is_better": lower, **curve, EVIDENCE: evidence}))

    @cached_property
    def _metrics(self) -> dict[str, Values]:
        """What each metric is, by its name in the records; those of judges beside the task say whose they are."""
        found = describe_metrics(self.task.metrics)
        for judge in self.study.judges:
            for name, told in describe_metrics(judge.metrics).items():
                found[metric_name(judge.name, name)] = {**told, "judge": judge.name}
        return found

    @cached_property
    def _fingerprint(self) -> str:
        digests = [self.task.fingerprint(), *(judge.fingerprint() for judge in self.study.judges)]
        return digests[0] if len(digests) == 1 else files.digest("".join(digests).encode())

    def _latency(self, reference: nn.Module, compact: nn.Module) -> dict[str, Latency]:
        options = self.study.measure
        return measure_latency(
            self.task, reference, compact, rounds=options.rounds, threads=options.threads, batches=options.batches
        )

    def _load_reference(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return artifact.load(self.folder.reference(seed), model=self.task.build())

    # -- beside the measurements -------------------------------------------------------------------------------------
    def _write_beside(self) -> None:
        """Write the noise floor and the remarks of the task, where they are not there yet."""
        if not self.folder.holds_beside("noise.json"):
            self.log.note("timing the uncompressed model against itself (noise floor)")
            self.folder.write_beside("noise.json", self._noise())
        stopped = [] if self.stopping is None else self.stopping.write()
        self.folder.write_notes([*self.task.notes(), *stopped])

    def _wants_baselines(self) -> bool:
        return self.study.measure.baselines and not self.folder.holds_beside("baselines.json")

    def _write_baselines(self, value: Values | Failure) -> None:
        if isinstance(value, Failure):
            self.log.note(f"baselines left out: {value.message}")
        elif value:
            self.folder.write_beside("baselines.json", value)

    def _noise(self) -> Values:
        """Run each reference against a copy of itself: what differs is noise."""
        timings, moved = [], {name: [0.0] for name in self.task.metrics}
        for seed in (seed for seed in self.study.seeds if self.folder.reference(seed).is_dir()):
            model = self._load_reference(seed).to(self.device)
            timings.append(next(iter(self._latency(model, copy.deepcopy(model)).values())))
            first, second = (self.task.outcomes(model) for _ in range(2))
            first.check_same_units(second)
            for name, metric in self.task.metrics.items():
                moved[name].append(metric(second) - metric(first))
        middle = sorted(timing.ratio for timing in timings)[len(timings) // 2]
        return {
            "latency_ratio": middle,
            "latency_ratio_ci": [min(t.ratio_low for t in timings), max(t.ratio_high for t in timings)],
            "quality": {name: [min(values), max(values)] for name, values in moved.items()},
            "rounds": self.study.measure.rounds,
            "threads": self.study.measure.threads,
        }

    # -- engine --------------------------------------------------------------------------------------------------------
    def _job(self, recipe: Recipe, seed: int) -> Job:
        return Job(
            source_of(self.task),
            self.folder.root.resolve(),
            recipe,
            seed,
            self.study.threads,
            tuple(map(judge_source_of, self.study.judges)),
            self.study.device,
        )

    def _outcomes(self, what: str, items: list[tuple[Work, Job]]) -> Iterator[tuple[Work, Job, Values | Failure]]:
        """Yield each piece of work with its result as it finishes, with progress."""
        if not items:
            return
        self.log.progress(what, 0, len(items))
        done = 0
        for part in self._parts(items):
            outcomes: Iterable[Outcome[Any]] = self.engine.outcomes(perform, part)
            for outcome in outcomes:
                value = outcome.value if outcome.value is not None else Failure(outcome.error)
                yield (*part[outcome.index], value)
                done += 1
                self.log.progress(what, done, len(items))

    def _parts(self, items: list[tuple[Work, Job]]) -> Iterator[list[tuple[Work, Job]]]:
        """Yield the work at once, or where time is limited as many pieces as run side by side, until it is up."""
        size = len(items) if self.end is None else self.engine.jobs
        for start in range(0, len(items), size):
            if start and self._time_is_up():
                return
            yield items[start : start + size]

    def _time_is_up(self) -> bool:
        return self.end is not None and time.monotonic() >= self.end

    @contextmanager
    def _peak_meter(self) -> Iterator[PeakMeter | None]:
        description = description_of(self.task)
        wanted = self.study.measure.peak_memory and description is not None
        with PeakMeter(description) if wanted and description else nullcontext() as meter:
            yield meter


def _chosen(study: Study, only: str | None) -> frozenset[str]:
    names = [recipe.name for recipe in study.recipes]
    found = frozenset(name for name in names if named(name, only))
    if not found:
        raise ConfigError(f"--only {only!r} matches no recipe of study {study.name!r}; {nearest(only or '', names)}")
    return found


def _peak(meter: PeakMeter | None, place: Path) -> Values:
    found: Peak | None = meter.measure(place) if meter is not None else None
    return (
        {} if found is None else {"peak_rss_bytes": found.peak_rss_bytes, "peak_rss_growth_bytes": found.growth_bytes}
    )
