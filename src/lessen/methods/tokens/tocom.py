"""ToCom: a plug-in that lets a model trained at one merging rate run at another."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods.tokens._shared.common import BLOCKS, CLAIMS, Survey, TokenMethod, record
from lessen.task import Task
from lessen.tokens.compensate import Compensator
from lessen.tokens.patch import Patch, reduce_tokens
from lessen.tokens.reducers import Merge, Reducer
from lessen.tokens.schedules import constant, largest_constant, possible
from lessen.tokens.stored import TokenReduction
from lessen.train.device import device_of
from lessen.train.fit import fit
from lessen.train.hooks import Hook
from lessen.train.settings import FitSettings


class ToCom(TokenMethod):
    """Distil low-rank corrections of queries and values without labels, fold them in, and merge r tokens a block.

    Token Compensator, ECCV 2024 (arXiv 2408.06798). Each step draws a pair of rates; the student (frozen backbone,
    corrected, merging `target`) learns the logits of the teacher (the same backbone merging `source`). Differences:
    the plug-in is distilled on the given model and task rather than on a pre-trained backbone, the pairs of rates come
    from a seeded generator, and the scale at evaluation is the one of training unless `scale` says otherwise. Only
    pairs whose source is the given model's own rate matter here, so they are drawn half of the time.
    """

    card = Card(
        name="tocom",
        family="tokens",
        summary="Merge r tokens a block and compensate by low-rank updates distilled without labels.",
        acts_on=BLOCKS,
        source="arXiv 2408.06798",
        needs=frozenset({"gradients", "training"}),
        claims=CLAIMS,
    )
    r: int = Field(8, ge=0, le=100_000, description="pairs merged in each block")
    source: int = Field(0, ge=0, le=100_000, description="rate at which the given model was trained")
    largest: int | None = Field(None, ge=1, le=1024, description="largest rate distilled; none: the largest possible")
    rank: int = Field(2, ge=1, le=256, description="rank of the update of one gap")
    steps: int = Field(300, ge=0, le=1_000_000, description="distillation steps")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="of AdamW, cosine to a hundredth")
    scale: float = Field(0.1, ge=0, le=10, description="factor on the correction")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Distil, fold and patch. Raises as every token method; InputError for rates that do not fit."""
        survey = self._survey(model, task, context)
        began = time.perf_counter()
        plug_in = self.distil(survey)
        context.train_seconds += time.perf_counter() - began
        plug_in.fold(self.source, self.r, self.scale)
        context.findings["plug_in_parameters"] = sum(p.numel() for p in plug_in.parameters())
        reducer = self.reducer(survey)
        TokenReduction(reducer).attach(model, tokens=survey.shape.tokens)
        record(survey, reducer)
        if self.fine_tune_epochs:
            self._fine_tune(model, task, context)
        return model

    def reducer(self, survey: Survey) -> Reducer:
        """Return the constant merging schedule."""
        return Merge(removed=constant(self.r, survey.shape.depth))

    def distil(self, survey: Survey) -> Compensator:
        """Return a plug-in trained for all pairs of rates; the model's weights are left as they were."""
        depth = survey.shape.depth
        most = largest_constant(survey.shape.tokens, depth, survey.tower.protected)
        largest = self.largest or max(1, most)
        teacher, student = copy.deepcopy(survey.model), survey.model
        with torch.random.fork_rng(devices=[]):
            plug_in = Compensator(student, largest=largest, rank=self.rank)
        generator = torch.Generator().manual_seed(survey.context.seed)

        def loss(plug_in: nn.Module, batch: object) -> Tensor:
            assert isinstance(plug_in, Compensator)
            source, target = self._pair(largest, generator)
            return self._loss(*patches, plug_in, survey, batch, source, target)

        nothing = Merge(removed=constant(0, depth))
        patches = reduce_tokens(teacher, nothing), reduce_tokens(student, nothing)
        wanted = [(p, p.requires_grad) for p in student.parameters()]
        student.requires_grad_(False)
        try:
            if self.steps:
                self._train(plug_in, loss, survey)
        finally:
            patches[1].remove()
            for parameter, before in wanted:
                parameter.requires_grad_(before)
        return plug_in.eval()

    def _train(self, plug_in: Compensator, loss: Callable[[nn.Module, object], Tensor], survey: Survey) -> None:
        seed = survey.context.seed
        with torch.enable_grad():
            fit(
                plug_in,
                batches=lambda number: survey.task.batches("train", seed=seed * 1_000_003 + number - 1),
                loss=loss,
                validate=None,
                settings=FitSettings(
                    steps=self.steps,
                    optimizer="adamw",
                    learning_rate=self.learning_rate,
                    weight_decay=0.05,
                    schedule="cosine",
                    minimum_learning_rate=0.01 * self.learning_rate,
                    clip_norm=None,
                ),
                hooks=(_Fresh(),),
                seed=seed,
                log=survey.context.log,
                device=device_of(survey.model),
            )

    def _pair(self, largest: int, generator: torch.Generator) -> tuple[int, int]:
        drawn = torch.randint(0, largest + 1, (2,), generator=generator).tolist()
        source = self.source if torch.rand((), generator=generator) < 0.5 else int(drawn[0])
        target = int(drawn[1])
        return source, target if target != source else (target + 1) % (largest + 1)

    def _loss(
        self,
        teacher: Patch,
        student: Patch,
        plug_in: Compensator,
        survey: Survey,
        batch: object,
        source: int,
        target: int,
    ) -> torch.Tensor:
        with torch.no_grad():
            wanted = _merged(teacher, source, survey, batch)
        with torch.enable_grad(), plug_in.active(source, target, self.scale):
            given = _merged(student, target, survey, batch)
        return F.kl_div(given.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)


class _Fresh(Hook):
    """Draws the plug-in's weights from the seed of the training, so that a seed names one plug-in."""

    def start(self, model: nn.Module) -> None:
        """Draw them."""
        assert isinstance(model, Compensator)
        model.reset_parameters()


def _merged(patch: Patch, rate: int, survey: Survey, batch: object) -> torch.Tensor:
    """Return the logits of a patched model when every block merges `rate` pairs, or as many as it has."""
    removed = possible(survey.shape.tokens, constant(rate, survey.shape.depth), survey.tower.protected)
    patch.reducer = Merge(removed=removed)
    return survey.task.forward(patch.model, batch)
