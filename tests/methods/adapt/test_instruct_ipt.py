"""A fine-tuned model as its base and low-rank differences: exact at full energy, Eckart-Young, small artifacts, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from lessen.artifact import folder as artifact
from lessen.artifact.delta import base_of
from lessen.errors import ConfigError
from lessen.method import Context
from lessen.methods.adapt.instruct_ipt import InstructIPT
from lessen.stored.linears.low_rank_delta import LowRankDelta
from lessen.testing.toys import TableTask


def tuned(model, rank=2, scale=0.1):
    made = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (made.first, made.second):
            layer.weight += scale * torch.randn(len(layer.weight), rank) @ torch.randn(rank, layer.in_features)
            layer.bias += 0.5
        made.items.weight[3] += 1.0
    return made


@pytest.fixture
def pair(tmp_path):
    torch.manual_seed(0)
    base = TableTask().build()
    model = tuned(base)
    path = tmp_path / "tuned.safetensors"
    save_file(model.state_dict(), path)
    return base, model, str(path)


@pytest.mark.parametrize("directions", ["outputs", "weights"])
def test_a_difference_of_low_rank_comes_back_and_beside_the_base_is_small(pair, tmp_path, directions):
    base, model, path = pair
    context = Context()
    method = InstructIPT(checkpoint=path, energy=0.99999, directions=directions)
    made = method.apply(copy.deepcopy(base), TableTask(), context)
    batch = TableTask().example_batch()[0]
    with torch.no_grad():
        assert torch.allclose(made(*batch), model(*batch), atol=1e-4)
    assert {found["rank"] for found in context.findings["layers"].values()} == {2}
    assert context.findings["unchanged"] == ["last"]
    stored = artifact.save(tmp_path / "delta", made, base, reference=base_of(base))
    again = artifact.load(tmp_path / "delta", model=base)
    with torch.no_grad():
        assert torch.equal(again(*batch), made(*batch))
    factors = 4 * sum(2 * (m.in_features + m.out_features) for m in made.modules() if isinstance(m, LowRankDelta))
    changed = 4 * (64 + 64) + base.items.weight.nbytes  # biases, and the table of which one row moved
    assert stored < factors + changed + 8_000


def test_outputs_err_less_by_outputs_than_by_weights(pair):
    base, _, path = pair
    model = tuned(base, rank=40, scale=0.02)
    save_file(model.state_dict(), path)
    batch, errors = TableTask().example_batch()[0], []
    for directions in ("outputs", "weights"):
        made = InstructIPT(checkpoint=path, rank=3, directions=directions, only="first").apply(
            copy.deepcopy(base), TableTask(), Context()
        )
        joined = torch.cat([base.items(batch[0]), base.tags(batch[1])], dim=1)
        with torch.no_grad():
            errors.append(float((made.first(joined) - model.first(joined)).square().sum()))
            change = model.first.weight - base.first.weight
            left = change - (made.first.dequantise() - base.first.weight)
        if directions == "weights":  # Eckart and Young
            assert float(left.norm()) == pytest.approx(float(torch.linalg.svdvals(change)[3:].norm()), rel=1e-3)
    assert errors[0] <= errors[1] * 1.02


def test_what_saves_nothing_is_stored_whole(pair):
    base, _, path = pair
    save_file(tuned(base, rank=64).state_dict(), path)
    context = Context()
    made = InstructIPT(checkpoint=path, rank=60).apply(copy.deepcopy(base), TableTask(), context)
    assert "saves nothing" in context.findings["whole"]["second"]
    assert isinstance(made.second, nn.Linear)


def test_checkpoints_of_another_model_are_one_line(pair, tmp_path):
    base, model, _ = pair
    state = model.state_dict()
    wrong = {
        "no readable safetensors": None,
        "first.weight has shape \\[64, 25\\], the base's \\[64, 24\\]": {**state, "first.weight": torch.zeros(64, 25)},
        "'extra' is in it only": {**state, "extra": torch.zeros(1)},
        "'last.bias' is in the base only": {k: v for k, v in state.items() if k != "last.bias"},
    }
    for said, tensors in wrong.items():
        where = tmp_path / "wrong.safetensors"
        where.write_bytes(b"junk") if tensors is None else save_file(tensors, where)
        with pytest.raises(ConfigError, match=said):
            InstructIPT(checkpoint=str(where)).apply(copy.deepcopy(base), TableTask(), Context())
    with pytest.raises(ConfigError, match="no readable"):
        InstructIPT(checkpoint="nowhere.safetensors").apply(copy.deepcopy(base), TableTask(), Context())
    with pytest.raises(ValidationError, match="rank and energy"):
        InstructIPT(rank=3, energy=0.5)
