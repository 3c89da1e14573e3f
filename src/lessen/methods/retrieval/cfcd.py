"""CFCD: one short embedding a picture, trained by cosines whose margin follows the batch, then by matching cells."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lessen.architectures.stages import find_stages
from lessen.errors import InputError, TaskError
from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.distil._shared.features import penultimate
from lessen.methods.modules import ModuleMethod
from lessen.retrieval.madacos import MadaCos
from lessen.retrieval.matches import hard_tuples, local_triplets
from lessen.stored.linears.cosine_head import SCALE, CosineHead
from lessen.task import Task, main_tensor
from lessen.train.device import device_of, to_device
from lessen.train.hooks import Hook
from lessen.train.taps import INPUT, OUTPUT, Taps
from lessen.train.teachers import evaluating


class CFCD(ModuleMethod):
    """Put a short embedding and cosine logits in place of a classifier's last layer, and train them with MadaCos.

    Source: Zhu et al., ICCV 2023: first MadaCos alone, then with triplets of local features that match. A pooled
    vector passes a linear layer and a batch norm, which are one layer afterwards; cosines of what they give are what an
    index searches (`CosineHead.embed`). Differences: pooling is the host's own; anchors, positives and hard negatives
    come from one batch, predictions from the step itself, where the code stores those of an epoch and draws tuples of
    the whole data set; the local term is a mean over matches, the code's a sum that grows with resolution; its default
    weight is 1 (the code's; its configuration says 0.05 and is not read).
    """

    card = Card(
        name="cfcd",
        family="retrieval",
        summary="Train a classifier into one short embedding a picture, searched by cosines.",
        acts_on=("model",),
        source="Coarse-to-Fine, Zhu et al., ICCV 2023",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset(),
    )
    dim: int = Field(64, ge=1, le=1 << 16, description="numbers of the embedding (published: 512)")
    alpha: float = Field(0.02, gt=0, lt=1, description="probability that the median example of a batch shall have")
    epochs: int | None = Field(None, ge=1, le=10_000, description="epochs of each stage; none: the task's own")
    local_weight: float = Field(1.0, ge=0, le=1e6, description="factor on local triplets; 0: the first stage alone")
    layer: str | None = Field(None, description="module whose maps are matched; none: the last stage")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train and return the model.

        Raises:
            TaskError: the task cannot train or has no classes, no linear layer runs, or there are no maps to match.
        """
        layer = self._layer(model, task) if self.local_weight else None
        path = penultimate(model, task.forward, task.example_batch()).removesuffix(INPUT)
        old = model.get_submodule(path)
        assert isinstance(old, nn.Linear)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            head = _Trained(old.in_features, self.dim, old.out_features, self.alpha).to(old.weight)
        _put(model, path, head)
        for stage in (None, layer) if layer is not None else (None,):
            retrain.train(model, task, context, self.epochs, (_Cosines(self, path, stage, task, context.seed),))
        _put(model, path, head.settled())
        return model

    def _layer(self, model: nn.Module, task: Task) -> str:
        batch = task.example_batch()
        try:
            with evaluating(model):
                stages = find_stages(model, lambda one: task.forward(one, to_device(batch, device_of(one))))
            layer = self.layer or stages[-1]
            with evaluating(model), torch.no_grad():
                taps = Taps(model, (layer,), main_tensor, training_only=False)
                try:
                    task.forward(model, to_device(batch, device_of(model)))
                    if taps.take()[layer].ndim == 4:
                        return layer
                finally:
                    taps.remove()
        except InputError as error:
            raise TaskError(
                f"{self.card.name}: {error}; set local_weight: 0 to train without local triplets"
            ) from error
        raise TaskError(f"{self.card.name}: {layer!r} gives no maps [rows, channels, height, width]; name another")


class _Trained(nn.Module):
    """The head as it trains: a linear layer, a batch norm, MadaCos."""

    def __init__(self, inputs: int, dim: int, classes: int, alpha: float) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(inputs, dim), nn.BatchNorm1d(dim)
        self.cosines = MadaCos(dim, classes, alpha)

    def embed(self, inputs: Tensor) -> Tensor:
        if inputs.ndim != 2:
            raise TaskError(f"cfcd needs one vector an example before the last layer, found shape {list(inputs.shape)}")
        found: Tensor = self.norm(self.linear(inputs))
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(self.embed(inputs), dim=1), F.normalize(self.cosines.weight, dim=1))
        return SCALE * cosines

    @torch.no_grad()
    def settled(self) -> CosineHead:
        """Return what is served: the norm folded into the linear layer."""
        made = CosineHead(self.linear.in_features, self.linear.out_features, len(self.cosines.weight))
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        made.project.copy_(self.linear.weight * factor[:, None])
        made.shift.copy_((self.linear.bias - norm.running_mean) * factor + norm.bias)
        made.classes.copy_(F.normalize(self.cosines.weight, dim=1))
        return made.to(self.linear.weight.device)


class _Cosines(Hook):
    """MadaCos in place of the task's loss, and local triplets where a layer is matched."""

    parallel = False  # scale and margin come from the batch as a whole

    def __init__(self, method: CFCD, path: str, layer: str | None, task: Task, seed: int) -> None:
        self.method, self.path, self.layer, self.task = method, path, layer, task
        self.generator = torch.Generator().manual_seed(seed)
        self._caught: Taps | None = None

    def start(self, model: nn.Module) -> None:
        """Watch the head's input, and the maps where they are matched."""
        paths = (self.path + INPUT,) if self.layer is None else (self.path + INPUT, self.layer)
        self._caught = Taps(model, paths, main_tensor, training_only=True)

    def loss(self, model: nn.Module, batch: Any, loss: Tensor) -> Tensor:  # noqa: ARG002 - the task's is left out
        """Return the cross-entropy of MadaCos, plus local triplets. Raises TaskError where answers are no classes."""
        assert self._caught is not None
        found = self._caught.take()
        answers, labels = found[OUTPUT], self.task.target(batch)
        if answers.ndim != 2 or labels.is_floating_point() or labels.ndim != 1:
            raise TaskError(f"cfcd needs one class an example; found answers of shape {list(answers.shape)}")
        labels = labels.to(answers.device).long()
        head = model.get_submodule(self.path)
        assert isinstance(head, _Trained)
        cosines = answers / SCALE
        scale, margin = head.cosines.settled(cosines.detach(), labels)
        own = F.one_hot(labels, cosines.shape[1])
        total = F.cross_entropy(scale * (cosines - margin * own), labels)
        if self.layer is not None:
            tuples = hard_tuples(labels.cpu(), answers.detach().argmax(dim=1).cpu(), self.generator)
            total = total + self.method.local_weight * local_triplets(found[self.layer], tuples)
        return total

    def finish(self, model: nn.Module) -> None:  # noqa: ARG002
        """Stop watching."""
        if self._caught is not None:
            self._caught.remove()


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, module)
