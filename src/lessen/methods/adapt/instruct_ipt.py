"""One backbone and a low-rank difference for each task: what a fine-tuned model adds to its base, and no more."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from typing_extensions import Self

from lessen.errors import ConfigError
from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.adapt._shared.joint import train_jointly
from lessen.methods.calibration import principal_axes, rank_for, run_through
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import Site, replace
from lessen.methods.weights._shared.curvature import curvatures
from lessen.stored.linears.low_rank_delta import LowRankDelta
from lessen.task import Task
from lessen.tasks import get_task


class InstructIPT(ModuleMethod):
    """Give the base the weights of a fine-tuned model, W + U V with few columns of U in every linear layer.

    Source: Instruct-IPT, "All-in-One Image Processing Transformer via Weight Modulation" (arXiv 2407.00676), its rank
    analysis: the difference of each matrix is decomposed and cut where a share of its energy is kept. The fine-tuned
    model is a `checkpoint` of equal architecture, or the base trained on this task, all weights. An artifact stores U,
    V and the tensors that are not low rank (biases, norms, embeddings, convolutions) beside a named base, so that k
    tasks are one model and k small artifacts. With `tasks` the base and the differences of all tasks train in the same
    run, as in the paper ("synchronous training"); what is returned is this recipe's task on the moved base, and `out`
    gets that base and an artifact of factors for each task.
    Differs from the paper: one rank is given and not found by a first run of full rank, heads are shared like all
    layers, and no text chooses the task. Without `tasks` it is the post-hoc form. Directions are by default those of
    the difference's outputs on data, which give the least error of outputs at a rank. A difference whose rank saves
    nothing is stored whole, and named.
    """

    card = Card(
        name="instruct-ipt",
        family="adapt",
        summary="Store a fine-tuned model as low-rank differences to its base.",
        acts_on=(nn.Linear,),
        source="Instruct-IPT 2024, arXiv 2407.00676",
        needs=frozenset({"gradients", "training", "calibration"}),
        claims=frozenset({"quality"}),
    )
    keeps_base = True
    later_knobs: ClassVar[frozenset[str]] = frozenset({"tasks", "out"})
    tasks: tuple[dict[str, Any], ...] | None = Field(
        None, description="other tasks, as `task:` of a study says them, whose differences train in the same run"
    )
    out: str | None = Field(
        None, description="tasks: folder for the shared base (`backbone`) and each task's factors (`0-NAME`, `1-NAME`)"
    )
    checkpoint: str | None = Field(None, description="safetensors of the fine-tuned model; none: train the base here")
    rank: int | None = Field(None, ge=1, le=65536, description="rank of every difference; none: from energy")
    energy: float | None = Field(
        None, gt=0, le=1, description="share of each difference's energy to keep; 0.9 where no rank is given"
    )
    directions: Literal["outputs", "weights"] = Field("outputs", description="energy of outputs on data, or of weights")
    calibration_batches: int = Field(32, ge=1, le=10**6, description="train batches to take inputs from")
    epochs: int | None = Field(None, ge=1, le=10_000, description="epochs where the base is trained; none: the task's")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.rank is not None and self.energy is not None:
            raise ValueError("rank and energy each choose the ranks; give one")
        if self.tasks is not None and (self.checkpoint is not None or self.rank is None):
            raise ValueError("tasks that train in the same run need a rank, and no checkpoint")
        if self.out is not None and self.tasks is None:
            raise ValueError("out is for tasks that train in the same run; give tasks")
        return self

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Decompose the differences. Raises NothingMatchedError; ConfigError for a checkpoint of other shapes."""
        sites = self.eligible(model, (nn.Linear,), context, self._reject, (LowRankDelta,))
        if self.tasks is not None:
            return self._jointly(model, sites, task, context)
        tuned = copy.deepcopy(model)
        if self.checkpoint is None:
            retrain.train(tuned, task, context, epochs=self.epochs)
        else:
            tuned.load_state_dict(read_state(self.checkpoint, model))
        twins = [Site(site.paths, tuned.get_submodule(site.paths[0])) for site in sites]
        inputs = self._inputs(tuned, twins, task)
        state, kept = tuned.state_dict(), {f"{site.paths[0]}.weight" for site in sites}
        model.load_state_dict({k: v for k, v in state.items() if k not in kept}, strict=False)
        for site, twin, second in zip(sites, twins, inputs, strict=True):
            model = self._put(model, site, twin.module.weight.detach(), second, context)
        return model

    def _jointly(self, model: nn.Module, sites: Sequence[Site], task: Task, context: Context) -> nn.Module:
        assert self.tasks is not None
        assert self.rank is not None
        every = [task, *(get_task(dict(one)) for one in self.tasks)]
        names = [f"{number}-{one.name}" for number, one in enumerate(every)]
        joint = train_jointly(model, sites, every, self.rank, context, self.epochs)
        context.findings["tasks"] = {
            name: round(one.score(joint.model(number), "validation"), 4)
            for number, (name, one) in enumerate(zip(names, every, strict=True))
        }
        if self.out is not None:
            context.findings["bytes"] = joint.save(Path(self.out), names)
        return joint.model(0)

    def _inputs(self, model: nn.Module, sites: Sequence[Site], task: Task) -> list[Tensor | None]:
        """Return the second moments of each layer's inputs, float32 [in, in], or None where they do not matter."""
        if self.directions == "weights":
            return [None] * len(sites)
        found = curvatures([[site] for site in sites], lambda: run_through(model, task, self.calibration_batches))
        return [one.total for one in found]

    @torch.no_grad()
    def _put(self, model: nn.Module, site: Site, weight: Tensor, second: Tensor | None, context: Context) -> nn.Module:
        layer = site.module
        change = (weight - layer.weight).double()
        if not bool(change.any()):
            context.findings.setdefault("unchanged", []).append(site.path)
            return model
        spread = (
            change @ change.t() if second is None or not bool(second.any()) else change @ second.double() @ change.t()
        )
        energies, axes = principal_axes(spread)
        rank = min(self.rank or rank_for(energies, self.energy or 0.9), *layer.weight.shape)
        if rank * sum(layer.weight.shape) >= layer.weight.numel():
            layer.weight.copy_(weight)
            context.findings.setdefault("whole", {})[site.path] = f"needs rank {rank}, which saves nothing"
            return model
        lost = float(energies[rank:].sum() / energies.sum().clamp_min(1e-300))
        context.findings.setdefault("layers", {})[site.path] = {"rank": rank, "lost": round(lost, 6)}
        made = LowRankDelta.around(layer, rank, 1.0, context.generator)
        made.layer.requires_grad_(True)
        made.up.copy_(axes[:, :rank])
        made.down.copy_(axes[:, :rank].t() @ change)
        return replace(model, site, made)

    def _reject(self, layer: nn.Linear) -> str | None:
        narrow = layer.weight.element_size() < 4
        return f"holds {layer.weight.dtype}, which a difference cannot be added to" if narrow else None


def read_state(path: str, model: nn.Module) -> Mapping[str, Tensor]:
    """Return the tensors of a checkpoint that fits a model.

    Raises:
        ConfigError: no such file, or tensors of other names or shapes; names the first.
    """
    try:
        found = load_file(Path(path))
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"checkpoint {path}: no readable safetensors file ({error})") from None
    own = model.state_dict()
    for name in sorted({*own, *found}):
        if name not in found or name not in own:
            raise ConfigError(
                f"checkpoint {path}: tensor {name!r} is in {'it' if name in found else 'the base'} only; give a "
                "checkpoint of the base's architecture"
            )
        if found[name].shape != own[name].shape:
            raise ConfigError(
                f"checkpoint {path}: {name} has shape {list(found[name].shape)}, the base's {list(own[name].shape)}; "
                "give a checkpoint of the base's architecture"
            )
    return found
