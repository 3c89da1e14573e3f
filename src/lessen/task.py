"""Judges and tasks. A judge says how good a model is; a task can also build, train and calibrate one.

A task for a user's own model needs four members; everything else has a default:

    class Mine(Task):
        name = "mine"
        metrics = {"auc": AUC}
        def build(self): return MyNetwork()
        def batches(self, split, seed=0): ...          # yields (inputs, target)
        def loss(self, model, batch): ...              # scalar tensor
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from typing_extensions import Self

from lessen.errors import NonFiniteError, TaskError
from lessen.log import SILENT, Log
from lessen.metrics import Metric, Outcomes, check_reads
from lessen.train.device import as_rows, device_of, for_numpy, to_device
from lessen.train.fit import FitResult, fit
from lessen.train.hooks import Hook
from lessen.train.settings import FitSettings

VIEWED = frozenset({"teacher", "texts", "images", "pairs", "withheld"})
"""Members that a view may add to a task that has none."""
ANSWERS = ("logits", "logits_per_image", "last_hidden_state", "image_embeds", "text_embeds", "prediction", "output")
"""Names under which libraries return what a model computed; the first that is there is judged."""
TIMED = 4
"""Calls that take turns while a model is timed."""
Split = Literal["train", "validation", "test"]
Batch = Any


class TaskOptions(BaseModel):
    """Base of the typed, YAML-visible options of a built-in task."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Workload:
    """One thing that a user waits for: a call of a model, made with each of `items` in turn."""

    call: Callable[[nn.Module, Any], Any]
    items: Sequence[Any]
    units: int
    """What one call gets through: examples of a batch, tokens that are read or written, queries."""
    unit: str = "examples"


class Judge(ABC):
    """How good a model is and what it is waited for. The first metric is the one that verdicts use.

    A judge looks at the same models as a study's task, beside it and with other eyes: other data, other questions. It
    cannot train; three members make one: `name`, `metrics` and `outcomes`.
    """

    name: str
    metrics: Mapping[str, Metric]
    columns: tuple[str, ...] | None = None
    """Columns that `outcomes` gives, so that a metric which needs others is refused at once."""
    origin: Mapping[str, Any] | None = None
    """Where a user's own one was named: `{name: FILE.py:NAME, option: value}`; other processes make it by that."""
    Options: ClassVar[type[TaskOptions] | None] = None
    """Set by built-in ones: options a study may give beside the name."""

    @abstractmethod
    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return what happened on each unit of `split`.

        Raises:
            TaskError: the split is empty.
            NonFiniteError: the model produced NaN or infinity.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a digest of what is asked and what is right, so that results on other data are never mixed."""

    def workloads(self, items: int = TIMED) -> Mapping[str, Workload]:  # noqa: ARG002 - for judges that are waited for
        """Return what is timed, by name; the first is the one that a report shows first. None by default.

        Args:
            items: how many different calls take turns.
        """
        return {}

    def costs(self, outcomes: Outcomes) -> Mapping[str, float]:  # noqa: ARG002 - for judges that see some
        """Return costs that are seen while judging, by kind of cost: bits per pixel of a codec. None by default."""
        return {}

    def notes(self) -> list[str]:
        """Return statements that a reader of the results must know, such as how many test users are new."""
        return []

    def describe(self) -> dict[str, Any]:
        """Return what identifies it in a study file: its name and options, JSON values only."""
        return {"name": self.name}

    @property
    def primary(self) -> str:
        """Name of the metric that early stopping and verdicts use."""
        return next(iter(self.metrics))

    def check_metrics(self) -> None:
        """Refuse what is no metric, or reads a column that the outcomes are known to lack. Raises TaskError."""
        check_reads(self.metrics, self.columns, f"task {self.name!r}")

    def score(self, model: nn.Module, split: Split = "validation") -> float:
        """Return the first metric on `split`, sign-flipped if lower is better, so that higher always wins."""
        metric = self.metrics[self.primary]
        value = metric(self.outcomes(model, split))
        return value if metric.higher_is_better else -value


class Task(Judge):
    """A judge that can also build, train and calibrate: data splits, a reference model, a loss."""

    settings: FitSettings = FitSettings()
    """How the reference, and every method that retrains, is trained."""
    device: str | torch.device = "cpu"
    """Where the reference is trained; a judge works where the model is, and batches follow the model."""
    provides: frozenset[str] = frozenset({"labels", "gradients", "training", "calibration"})
    pretrained: ClassVar[bool] = False
    """Whether `reference` returns weights that come with the package rather than train some."""

    # -- the four members a user writes ---------------------------------------------------------------------
    @abstractmethod
    def build(self) -> nn.Module:
        """Return the untrained reference model; draws from torch's global generator, which callers seed."""

    @abstractmethod
    def batches(self, split: Split, seed: int = 0) -> Iterable[Batch]:
        """Yield batches of `split`; by default a batch is `(inputs, target)`. `seed` orders the train split."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:  # noqa: ARG002 - for tasks that train
        """Return the scalar training loss of `batch`. Raises TaskError where there is none: nothing can be trained."""
        raise TaskError(f"task {self.name!r} has no loss: nothing can be trained on it")

    @classmethod
    def architecture(cls, options: Any) -> Callable[[], nn.Module]:
        """Return what builds the untrained reference model of these `Options`.

        A task overrides this where options alone tell the model, so that an artifact is opened without its data.
        """
        build: Callable[[], nn.Module] = cls(options).build  # type: ignore[call-arg]
        return build

    # -- variations -------------------------------------------------------------------------------------------
    def view(self, **changes: Any) -> Self:
        """Return the same task with some members replaced: the one way to vary a task.

        task.view(batches=lambda split, seed=0: ...)        other training rows
        task.view(settings=replace(task.settings, epochs=1), loss=lambda model, batch: ...)
        task.view(teacher=lambda seed: model)               a capability that the task lacks

        Functions take the arguments of the method that they replace, without `self`. The task itself is left as it is.

        Raises:
            TaskError: a name that tasks do not have.
        """
        other = copy.copy(self)
        for name, value in changes.items():
            if not hasattr(self, name) and name not in VIEWED:
                raise TaskError(f"a view of task {self.name!r} cannot change {name!r}, which tasks do not have")
            vars(other)[name] = value
        return other

    # -- defaults ---------------------------------------------------------------------------------------------
    def inputs(self, batch: Batch) -> Any:
        """Return what the model is called with: a tensor, a tuple of positional or a dict of keyword arguments."""
        return batch[0]

    def target(self, batch: Batch) -> Tensor:
        """Return the labels of `batch`, first dimension examples."""
        return torch.as_tensor(batch[1])

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Call `model` on the inputs of `batch`, where the model is."""
        inputs, device = self.inputs(batch), device_of(model)
        return call_model(model, inputs if device.type == "cpu" else to_device(inputs, device))

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scores that the metrics judge, one row an example, float32."""
        return self.forward(model, batch).float()

    def example_batch(self) -> Batch:
        """Return one batch for timing and counting multiply-adds: the first of the test split."""
        for batch in self.batches("test"):
            return batch
        raise TaskError(f"task {self.name!r} has an empty test split: nothing can be measured")

    def units_in(self, batch: Batch) -> int:
        """Return the number of test units in a batch: the first dimension of its target."""
        return int(self.target(batch).shape[0])

    def workloads(self, items: int = TIMED) -> Mapping[str, Workload]:
        """Return `forward` on up to `items` test batches of the example batch's size, so that lookups differ."""
        first = self.example_batch()
        size = self.units_in(first)
        same = (batch for batch in itertools.islice(self.batches("test"), 1, None) if self.units_in(batch) == size)
        return {"forward": Workload(self.forward, [first, *itertools.islice(same, items - 1)], size)}

    def companions(self) -> Mapping[str, Path]:
        """Return files that serving a model of this task needs beside weights, by name: those of its tokenizer."""
        return {}

    def baselines(self, log: Log = SILENT) -> dict[str, dict[str, Any]]:  # noqa: ARG002 - for tasks that fit some
        """Return simple models on the same features: `{name: {metric: value, metric_ci: [low, high]}}`.

        Raises:
            MissingExtraError: fitting them needs a package that is not installed.
        """
        return {}

    def fingerprint(self) -> str:
        """Return a SHA-256 of the validation and test splits, so that results on other data are never mixed."""
        digest = hashlib.sha256()
        for split in ("validation", "test"):
            for batch in self.batches(split):
                _hash_into(digest, batch)
        return digest.hexdigest()

    def train(
        self,
        model: nn.Module,
        *,
        seed: int = 0,
        settings: FitSettings | None = None,
        hooks: tuple[Hook, ...] = (),
        log: Log = SILENT,
        validate: Callable[[nn.Module], float] | None = None,
        device: str | torch.device | None = None,
    ) -> FitResult:
        """Train `model` in place by the one training loop.

        Args:
            validate: score that decides when to stop and what to keep, higher is better; None: the first metric.
            device: where the model is moved to; None: where it is. Batches follow.

        Raises:
            TaskError, ConfigError, NonFiniteError: see `train.fit.fit`.
        """
        if "training" not in self.provides:
            raise TaskError(f"task {self.name!r} cannot train: it does not provide training data")
        return fit(
            model,
            batches=lambda epoch: self.batches("train", seed=seed * 1_000_003 + epoch),
            loss=self.loss,
            validate=validate or (lambda candidate: self.score(candidate, "validation")),
            settings=settings or self.settings,
            hooks=hooks,
            seed=seed,
            log=log,
            device=device,
        )

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:
        """Return the trained, uncompressed model. Override it to return a model you already have."""
        torch.manual_seed(seed)
        model = self.build()
        self.train(model, seed=seed, log=log, device=self.device)
        return model.eval()

    # -- judging ----------------------------------------------------------------------------------------------
    def groups(self, split: Split) -> np.ndarray | None:  # noqa: ARG002 - for tasks that have some
        """Return the group of each row of `split` (a user, a video, a subject), integers or strings, or None."""
        return None

    def slices(self, split: Split) -> Mapping[str, np.ndarray]:  # noqa: ARG002 - for tasks that know some
        """Return what the rows of `split` can be cut by: labels [rows], integers or strings, by name. None by default.

        The judge of slices looks for those that a compact model fails; the rows are those of `outcomes`.
        """
        return {}

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return what happened on each unit of `split`: columns score and target, and the group if there is one.

        Override it for models that are not judged by one row of scores an example; say which columns it gives in
        `columns`.

        Raises:
            TaskError: the split is empty.
            NonFiniteError: the model produced NaN or infinity.
        """
        scores, targets = self.predictions(model, split)
        return Outcomes({"score": scores, "target": targets}, self.groups(split))

    def check_metrics(self) -> None:
        """Refuse a metric that reads a column which the outcomes lack, as far as that is known. Raises TaskError."""
        if self.columns is None and type(self).outcomes is Task.outcomes:
            columns = ("score", "target", *(() if type(self).groups is Task.groups else ("group",)))
            check_reads(self.metrics, columns, f"task {self.name!r}")
        super().check_metrics()

    @torch.no_grad()
    def predictions(self, model: nn.Module, split: Split = "test") -> tuple[np.ndarray, np.ndarray]:
        """Return (scores, targets) of a split as arrays with one row an example.

        Raises:
            TaskError: the split is empty.
            NonFiniteError: the model produced NaN or infinity.
        """
        was_training = model.training
        model.eval()
        scores, targets, device = [], [], device_of(model)
        for batch in self.batches(split):
            scores.append(self.predict(model, to_device(batch, device)))
            targets.append(self.target(batch))
        model.train(was_training)
        if not scores:
            raise TaskError(f"task {self.name!r} has an empty {split} split; give it rows or choose another split")
        joined = as_rows(scores, f"the {split} scores of task {self.name!r}")
        if not bool(torch.isfinite(joined).all()):
            bad = int((~torch.isfinite(joined)).sum())
            raise NonFiniteError(f"the model gave NaN or infinity for {bad} of {joined.numel()} {split} scores")
        return joined.numpy(), as_rows(targets, f"the {split} targets of task {self.name!r}").numpy()


def call_model(model: nn.Module, inputs: Any) -> Tensor:
    """Call `model` with a tensor, a tuple of positional arguments or a dict of keyword arguments.

    Raises:
        TaskError: what it returns is no tensor and holds none that can be named; see `main_tensor`.
    """
    if isinstance(inputs, Mapping):
        return main_tensor(model(**inputs), model)
    return main_tensor(model(*inputs) if isinstance(inputs, tuple) else model(inputs), model)


def main_tensor(output: Any, model: nn.Module) -> Tensor:
    """Return the tensor that says what `model` computed: its output, or the one that has a known name in it.

    A mapping or a dataclass (Hugging Face's outputs are both) is read by the names of `ANSWERS`, in their order; what
    holds a single tensor needs no name.

    Raises:
        TaskError: several tensors and no known name; a guess would judge the wrong one.
    """
    if isinstance(output, Tensor):
        return output
    named: Mapping[str, Any] = {}
    if isinstance(output, Mapping):
        named = output
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        named = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    elif isinstance(output, (tuple, list)):
        named = {str(number): value for number, value in enumerate(output)}
    tensors = {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
    known = next((name for name in ANSWERS if name in tensors), None)
    if known is not None or len(tensors) == 1:
        return tensors[known] if known is not None else next(iter(tensors.values()))
    held = f" with the tensors {', '.join(tensors)}" if tensors else ""
    raise TaskError(
        f"{type(model).__name__} returned a {type(output).__name__}{held}, and none says which to judge; override "
        "Task.forward to pick one"
    )


def _hash_into(digest: Any, value: Any) -> None:
    """Feed tensors, arrays and containers into `digest` with their dtype and shape."""
    if isinstance(value, Mapping):
        for key in sorted(value):
            digest.update(str(key).encode())
            _hash_into(digest, value[key])
    elif isinstance(value, (tuple, list)):
        for item in value:
            _hash_into(digest, item)
    elif isinstance(value, (Tensor, np.ndarray)):
        if isinstance(value, Tensor) and for_numpy(value).dtype != value.dtype:
            digest.update(str(value.dtype).encode())
        array = np.ascontiguousarray(for_numpy(value).numpy() if isinstance(value, Tensor) else value)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    else:
        digest.update(repr(value).encode())
