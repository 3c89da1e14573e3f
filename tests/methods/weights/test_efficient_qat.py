"""EfficientQAT: slopes of grids against autograd, codes that stay, answers that come nearer, artifacts and refusals."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from lessen.artifact import folder as artifact
from lessen.errors import ConfigError, NothingMatchedError
from lessen.methods.weights._shared.grid_training import GridInTraining, divergence
from lessen.methods.weights._shared.grids import fit_grid, quantise
from lessen.methods.weights.efficient_qat import EfficientQAT
from lessen.methods.weights.gptq import GPTQ
from lessen.recipe import Recipe
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.tasks.language.manual import ManualOptions, ManualTask
from lessen.testing.toys import TableTask


def layer_of(inputs, out, bits, group, symmetric, bias=True):
    dense = nn.Linear(inputs, out, bias=bias)
    grid = fit_grid(dense.weight, bits, group, symmetric, "minmax")
    return GroupQuantizedLinear.from_codes(dense, grid, quantise(dense.weight, grid))


@pytest.mark.parametrize(("bits", "group", "symmetric"), [(3, 32, False), (2, 48, True), (4, 100, False)])
def test_slopes_are_those_of_the_decoded_weight(bits, group, symmetric):
    torch.manual_seed(bits)
    layer = layer_of(100, 7, bits, group, symmetric)
    each = GridInTraining(layer)
    with torch.no_grad():
        for parameter in each.parameters():
            parameter.uniform_(-0.2, 0.2)
    inputs, pull = torch.randn(2, 5, 100, requires_grad=True), torch.randn(2, 5, 7)
    (each(inputs) * pull).sum().backward()
    found = [inputs.grad.clone(), *(p.grad.clone() for p in each.parameters())]

    inputs.grad = None
    each.zero_grad()
    scales, minimums = each.now()
    groups = torch.arange(100) // group
    levels = each.codes.float() - (2 ** (bits - 1) if symmetric else 0)
    weight = levels * scales[:, groups] + (0 if minimums is None else minimums[:, groups])
    ((inputs @ weight.t() + layer.bias) * pull).sum().backward()
    for one, other in zip(found, [inputs.grad, *(p.grad for p in each.parameters())], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_before_the_first_step_nothing_has_moved():
    layer = layer_of(70, 5, 3, 32, False)
    each, inputs = GridInTraining(layer), torch.randn(4, 70)
    assert torch.allclose(each(inputs), inputs @ layer.dequantise().t() + layer.bias, atol=1e-5)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    each.write(layer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_what_fp16_cannot_hold_stays():
    layer = layer_of(32, 2, 4, 32, False)
    each, before = GridInTraining(layer), layer.scales.clone()
    with torch.no_grad():
        each.scale_moves[0] = 1e9
        each.scale_moves[1] = 0.5
    each.write(layer)
    assert torch.equal(layer.scales[0], before[0])
    assert torch.allclose(layer.scales[1].float(), 1.5 * before[1].float(), rtol=1e-3)


def test_divergence_is_the_closed_form():
    one, other = torch.randn(3, 4, 9), torch.randn(3, 4, 9)
    p, q = other.softmax(-1), one.log_softmax(-1)
    expected = (p * (p.log() - q)).sum(-1).mean()
    assert torch.allclose(divergence(one, other, None), expected, atol=1e-5)
    clicks, wanted = torch.randn(6), torch.randn(6)
    chance = wanted.sigmoid()
    expected = chance * (chance / clicks.sigmoid()).log() + (1 - chance) * ((1 - chance) / (1 - clicks.sigmoid())).log()
    assert torch.allclose(divergence(clicks, wanted, None), expected.mean(), atol=1e-5)


@pytest.fixture(scope="module")
def tiny():
    task = ManualTask(ManualOptions(width=64, depth=2, documents=4, steps=40))
    return task, task.reference(seed=0)


KNOBS = {"bits": 2, "group": 32, "ranges": "search", "min_weights": 64, "calibration_batches": 4, "table_bits": None}


def kl(task, original, model):
    with torch.no_grad():
        batch = task.example_batch()
        return float(divergence(task.forward(model, batch), task.forward(original, batch), batch))


def test_answers_come_nearer_codes_and_bytes_stay(tiny, tmp_path):
    task, original = tiny
    plain, _ = Recipe([GPTQ(**KNOBS)]).apply(original, task, seed=0)
    trained, ledger = Recipe([EfficientQAT(**KNOBS, steps=25, learning_rate=1e-2)]).apply(original, task, seed=0)
    again = dict(plain.named_modules())
    for path, module in trained.named_modules():
        if isinstance(module, GroupQuantizedLinear):
            assert torch.equal(module.codes, again[path].codes)
            assert module.scales.dtype == torch.float16
            assert not torch.equal(module.scales, again[path].scales)
    assert kl(task, original, trained) < 0.9 * kl(task, original, plain)
    assert ledger[0].findings["loss"]["after"] < ledger[0].findings["loss"]["before"]
    assert not any(
        parameter.requires_grad != before.requires_grad
        for parameter, before in zip(
            (p for _, p in sorted(trained.named_parameters())),
            (p for n, p in sorted(original.named_parameters()) if n in dict(trained.named_parameters())),
            strict=True,
        )
    )
    artifact.save(tmp_path / "a", trained, original)
    loaded = artifact.load(tmp_path / "a", model=original)
    batch = task.example_batch()
    assert torch.equal(task.forward(loaded, batch), task.forward(trained, batch))


def test_a_click_model_learns_too():
    task = TableTask()
    original = task.reference(seed=0)
    knobs = {**KNOBS, "table_bits": 8}
    plain, _ = Recipe([GPTQ(**knobs)]).apply(original, task, seed=0)
    made, _ = Recipe([EfficientQAT(**knobs, steps=30, learning_rate=1e-2)]).apply(original, task, seed=0)
    assert kl(task, original, made) < kl(task, original, plain)


def test_a_hugging_face_model_with_a_tied_table():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=256,
        tie_word_embeddings=True,
    )  # fmt: skip
    original = transformers.LlamaForCausalLM(config).eval()
    rows = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(1))

    def batches(split, seed=0):
        for _ in range(3):
            yield {"input_ids": rows}, rows

    task = ManualTask(ManualOptions(width=64, depth=1)).view(
        batches=batches,
        forward=lambda model, batch: model(**batch[0]).logits,
        example_batch=lambda: next(batches("test")),
    )
    made, _ = Recipe([EfficientQAT(bits=3, group=32, steps=6, accumulate=2)]).apply(original, task, seed=0)
    assert made.lm_head.codes.data_ptr() == made.model.embed_tokens.codes.data_ptr()
    assert torch.isfinite(made(input_ids=rows).logits).all()


def test_a_second_step_finds_nothing(tiny):
    task, original = tiny
    step = EfficientQAT(**KNOBS, steps=2)
    made, _ = Recipe([step]).apply(original, task, seed=0)
    with pytest.raises(NothingMatchedError, match="efficient-qat"):
        Recipe([step]).apply(made, task, seed=0)


def test_knobs_have_ranges():
    with pytest.raises((ConfigError, ValueError), match="steps"):
        EfficientQAT(steps=0)
