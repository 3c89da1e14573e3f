"""OAC: the output curvature against autograd's own gradients, one unit of calibration at a time."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from host_models import host
from host_words import Words
from lessen.architectures.stacks import find_stacks
from lessen.errors import InputError, NonFiniteError, TaskError
from lessen.method import Context
from lessen.methods.weights._shared.curvature import Curvature, output_curvatures
from lessen.methods.weights._shared.slopes import (
    backward_through_all,
    backward_through_blocks,
    without_parameters,
)
from lessen.methods.weights.gptq import GPTQ
from lessen.methods.weights.rtn import RTN
from lessen.recipe import Recipe
from lessen.testing.toys import TableTask


def by_autograd(task, model, path):
    """Sum over units of G^T G, with G read from `weight.grad` after a backward pass of that unit's part of the loss."""
    weight = model.get_submodule(path).weight
    total = torch.zeros(weight.shape[1], weight.shape[1])
    for given, labels in task.batches("train"):
        for row in range(task.rows):
            answers = task.forward(model, (given, labels)).float()
            draw = torch.Generator().manual_seed(1)
            parts = (answers.log_softmax(-1) * torch.randn(answers.shape, generator=draw)) / answers.numel()
            (gradient,) = torch.autograd.grad(parts[row].sum(), weight)
            total += gradient.t() @ gradient
    return total


def sites_of(model, *paths):
    sites = RTN(min_weights=1).candidates(model, (nn.Linear,), Context())
    return [site for site in sites if site.path in paths] if paths else sites


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "bloom", "bert", "vit"])
def test_one_block_at_a_time_gives_what_autograd_gives(name):
    task, model = Words(name), host(name)
    (stack,) = find_stacks(model)
    sites = [site for site in sites_of(model) if site.path.startswith(stack.path)]
    for first in (0, 1):
        seen = [site for site in sites if site.path.startswith(stack.blocks[1].path) or first == 0]
        with without_parameters(model):
            found = output_curvatures(
                seen,
                lambda first=first: [
                    backward_through_blocks(model, task, batch, stack.blocks, first) for batch in task.batches("train")
                ],
            )
        for site, curvature in list(zip(seen, found, strict=True))[::3]:
            expected = by_autograd(task, model, site.path)
            assert curvature.count == 6
            assert torch.allclose(curvature.total, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max())), (
                site.path
            )
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_models_of_several_stacks_go_back_in_one_graph():
    task, model = Words("t5"), host("t5")
    paths = ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.1.layer.1.EncDecAttention.v"]
    sites = sites_of(model, *paths)
    with without_parameters(model):
        found = output_curvatures(
            sites, lambda: [backward_through_all(model, task, batch, sites) for batch in task.batches("train")]
        )
    for site, curvature in zip(sites, found, strict=True):
        expected = by_autograd(task, model, site.path)
        assert torch.allclose(curvature.total, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    made = GPTQ(bits=3, group=32, min_weights=1, hessian="output").apply(model, task, Context())
    assert bool(torch.isfinite(task.forward(made, next(task.batches("train")))).all())


def test_of_a_softmax_layer_and_one_token_it_has_a_closed_form():
    """G = (p - y) x^T, so that G^T G = |p - y|^2 x x^T."""
    torch.manual_seed(0)
    layer, x, target = nn.Linear(7, 5), torch.randn(4, 7), torch.tensor([0, 3, 1, 4])
    curvature = Curvature("layer", layer)
    logits = layer(x)
    away = logits.softmax(-1) - nn.functional.one_hot(target, 5)
    (slopes,) = torch.autograd.grad(nn.functional.cross_entropy(logits, target, reduction="sum"), logits)
    curvature.add_gradients(x, slopes)
    expected = sum(float(a.square().sum()) * torch.outer(v, v) for a, v in zip(away.detach(), x, strict=True))
    assert torch.allclose(curvature.total, expected, rtol=1e-4, atol=1e-6)


def test_tokens_of_a_sequence_are_summed_before_the_square_is_taken():
    torch.manual_seed(0)
    x, slopes = torch.randn(2, 3, 4), torch.randn(2, 3, 5)
    sequences, tokens = Curvature("a", nn.Linear(4, 5)), Curvature("b", nn.Linear(4, 5))
    sequences.add_gradients(x, slopes)
    tokens.add_gradients(x.flatten(0, 1), slopes.flatten(0, 1))
    gradients = torch.einsum("nto,nti->noi", slopes, x)
    assert torch.allclose(sequences.total, torch.einsum("noi,noj->ij", gradients, gradients), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(sequences.total, tokens.total, rtol=0.1, atol=0.1)
    assert (sequences.count, tokens.count) == (2, 6)


@pytest.mark.parametrize("a_pass", [1, 2])
def test_gptq_by_the_loss_moves_the_loss_less(a_pass):
    task = Words("llama", rows=8)
    model = host("llama")
    moved = {}
    for hessian in ("input", "output"):
        knobs = {"blocks_a_pass": a_pass} if hessian == "output" else {}
        method = GPTQ(bits=3, group=32, min_weights=1, hessian=hessian, **knobs)
        context = Context()
        made = method.apply(host("llama"), task, context)
        assert set(context.findings["outputs"]) == set(context.findings["layers"])
        with torch.no_grad():
            moved[hessian] = sum(
                float(abs(task.loss(made, each) - task.loss(model, each))) for each in task.batches("train")
            )
    assert moved["output"] < moved["input"]


def test_a_model_without_blocks_goes_back_whole_row_by_row():
    task = TableTask()
    moved = {}
    for hessian in ("input", "output"):
        method = GPTQ(bits=2, group=32, min_weights=64, hessian=hessian, only="second")
        made, _ = Recipe([method]).apply(task.reference(0), task)
        with torch.no_grad():
            moved[hessian] = sum(float(task.loss(made, batch)) for batch in task.batches("train"))
    assert moved["output"] < moved["input"]


def test_knobs_that_do_not_fit_and_tasks_without_a_loss_are_one_line():
    with pytest.raises(ValidationError, match="true_sequential needs hessian=input"):
        GPTQ(hessian="output", true_sequential=True)
    with pytest.raises(ValidationError, match="blocks_a_pass needs hessian=output"):
        GPTQ(blocks_a_pass=2)

    class NoLoss(Words):
        provides = frozenset({"calibration"})

    with pytest.raises(TaskError, match="hessian=output needs a loss"):
        GPTQ(bits=3, group=32, min_weights=1, hessian="output").apply(host("llama"), NoLoss(), Context())


def test_a_loss_that_is_not_finite_names_the_layer():
    class Broken(Words):
        def loss(self, model, batch):
            return super().loss(model, batch) * torch.tensor(float("nan"))

    with pytest.raises(NonFiniteError, match=r"slope of NaN or infinity at model\.layers\.1"):
        GPTQ(bits=3, group=32, min_weights=1, hessian="output").apply(host("llama"), Broken(), Context())


def test_a_model_whose_loss_does_not_read_the_blocks_is_told():
    class Elsewhere(Words):
        def loss(self, model, batch):
            self.forward(model, batch)
            return torch.zeros(())

    with pytest.raises(InputError, match="does not depend on what"):
        GPTQ(bits=3, group=32, min_weights=1, hessian="output").apply(host("llama"), Elsewhere(), Context())


def test_tokens_apart_weigh_each_row_by_its_own_slope():
    torch.manual_seed(0)
    given, slopes = torch.randn(2, 5, 8), torch.randn(2, 5, 3)
    apart, summed = (Curvature("here", nn.Linear(8, 3)) for _ in range(2))
    apart.add_gradients(given, slopes, apart=True)
    summed.add_gradients(given, slopes)
    rows = (given.reshape(-1, 8), slopes.reshape(-1, 3))
    wanted = sum(torch.outer(g, x).t() @ torch.outer(g, x) for x, g in zip(*rows, strict=True))
    assert torch.allclose(apart.total, wanted, rtol=1e-4)
    assert not torch.allclose(apart.total, summed.total, rtol=0.1)
    assert apart.count == 10
