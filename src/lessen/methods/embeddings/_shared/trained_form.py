"""Tables that are trained in one form and stored in another: quantisers in the training loop."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from lessen.errors import NonFiniteError
from lessen.method import Context
from lessen.methods import retrain
from lessen.methods.embeddings._shared.retrained import RetrainedTables
from lessen.methods.sites import module_bytes, replace_everywhere
from lessen.stored.tables.embedding import StoredEmbedding
from lessen.task import Task
from lessen.train.hooks import Hook


class TrainingForm(StoredEmbedding):
    """A table while it is trained; `stored` gives what remains."""

    kind = "training-form"

    def stored(self) -> StoredEmbedding:
        """Return the compact table, whose lookups equal this module's in eval mode."""
        raise NotImplementedError(f"{type(self).__name__}.stored")

    def stored_bytes(self) -> int:
        """Return the bytes that `stored` will take."""
        return module_bytes(self.stored())

    def penalty(self) -> Tensor | None:
        """Return a term for the loss of the last forward, or None."""
        return None


class TrainedQuantizer(RetrainedTables):
    """Train with the quantiser in the loop, then keep the codes only."""

    start: Literal["given", "fresh"] = Field(
        "given", description="train on from the model's own weights, or from a fresh build"
    )

    def started(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Return the given model, or a fresh build where nothing is lost by it."""
        if self.start == "fresh":
            return retrain.fresh(model, task, context)
        context.findings["start"] = "given model"
        return model

    def final_bytes(self, made: StoredEmbedding) -> int:
        """Return the bytes of the stored form."""
        return made.stored_bytes() if isinstance(made, TrainingForm) else module_bytes(made)

    def training_hooks(self, context: Context) -> tuple[Hook, ...]:  # noqa: ARG002
        """Return the hook that adds the quantisers' own losses."""
        return (QuantizerLoss(),)

    def finish(self, model: nn.Module, context: Context) -> nn.Module:  # noqa: ARG002
        """Replace every training form by its stored form. Raises NonFiniteError if training left NaN in one."""
        for module in [module for module in model.modules() if isinstance(module, TrainingForm)]:
            for name, parameter in module.named_parameters():
                if not bool(parameter.isfinite().all()):
                    raise NonFiniteError(f"{self.card.name}: training left NaN or infinity in {name}")
            model = replace_everywhere(model, module, module.stored())
        return model


class QuantizerLoss(Hook):
    """Adds the penalties of all training forms to the loss of a step."""

    def loss(self, model: nn.Module, batch: Any, loss: Tensor) -> Tensor:  # noqa: ARG002
        """Add their sum."""
        terms = [term for m in model.modules() if isinstance(m, TrainingForm) and (term := m.penalty()) is not None]
        return loss + sum(terms[1:], terms[0]) if terms else loss
