"""One backbone and k differences that train in the same run: isolation, merged equals unmerged, small artifacts."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from lessen.artifact import folder as artifact
from lessen.errors import ConfigError
from lessen.method import Context
from lessen.methods.adapt._shared.joint import TaskDeltas, mixed, train_jointly
from lessen.methods.adapt.instruct_ipt import InstructIPT
from lessen.methods.sites import Site
from lessen.recipe import Recipe
from lessen.stored.linears.low_rank_delta import LowRankDelta
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask
from lessen.train.settings import FitSettings


def styles(epochs=1):
    settings = FitSettings(epochs=epochs, learning_rate=3e-3, optimizer="adamw", weight_decay=0.1)
    return [ShapesTask(ShapesOptions(style=s, examples=128)).view(settings=settings) for s in ("filled", "faded")]


def deltas_in(model, tasks, rank=3):
    generator = torch.Generator().manual_seed(0)
    sites = []
    for path in ("hidden", "head"):
        made = TaskDeltas(model.get_submodule(path), tasks, rank, generator)
        setattr(model, path, made)
        sites.append(Site((path,), made))
    return sites


def test_differences_start_at_the_base_and_a_step_moves_one_task_only():
    tasks = styles()
    base = tasks[0].build()
    model = copy.deepcopy(base)
    sites = deltas_in(model, 2)
    task = mixed(tasks, sites)
    batches = list(task.batches("train", 0))
    assert {number for number, _ in batches} == {0, 1}
    assert len(batches) == sum(1 for one in tasks for _ in one.batches("train"))
    with torch.no_grad():
        assert torch.equal(model(batches[0][1][0]), base(batches[0][1][0]))
    # decay and moments would move a task that is absent; twice each, so that all have moments
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    for number, batch in [next(b for b in batches if b[0] == n) for n in (0, 1, 0, 1)]:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.zero_grad(set_to_none=True)
        task.loss(model, (number, batch)).backward()
        optimizer.step()
        other = 1 - number
        for name, parameter in model.named_parameters():
            still = torch.equal(parameter, before[name])
            assert still == name.endswith((f"up.{other}", f"down.{other}")), name


def test_each_task_is_a_model_of_its_own_and_small_beside_the_backbone(tmp_path):
    tasks = styles(epochs=2)
    model = tasks[0].build()
    sites = [Site((path,), model.get_submodule(path)) for path in ("hidden", "head")]
    joint = train_jointly(model, sites, tasks, 3, Context(seed=1), None)
    assert all(p.requires_grad for p in joint.backbone().parameters())
    pictures = next(iter(tasks[1].batches("test")))[0]
    bytes_of = joint.save(tmp_path, ["filled", "faded"])
    shared = artifact.load(tmp_path / "backbone", model=tasks[0].build())
    for number, name in enumerate(["filled", "faded"]):
        made = joint.model(number)
        for site in joint.sites:
            site.module.chosen = number
        with torch.no_grad():
            assert torch.allclose(made(pictures), joint.trained(pictures), atol=1e-5)
            merged = copy.deepcopy(joint.backbone())
            for site in joint.sites:
                merged.get_submodule(site.path).weight.copy_(made.get_submodule(site.path).dequantise())
            assert torch.allclose(merged(pictures), made(pictures), atol=1e-5)
            loaded = artifact.load(tmp_path / name, model=shared)
            assert torch.equal(loaded(pictures), made(pictures))
        factors = sum(4 * m.rank * (m.in_features + m.out_features) for m in made.modules()
                      if isinstance(m, LowRankDelta))  # fmt: skip
        assert factors < bytes_of[name] < factors + 6_000
    assert bytes_of["faded"] < 0.2 * bytes_of["backbone"]
    assert not torch.equal(joint.model(0)(pictures), joint.model(1)(pictures))


def test_a_recipe_trains_all_and_returns_its_own(tmp_path):
    filled, _ = styles()
    step = InstructIPT(tasks=({"name": "shapes", "style": "faded", "examples": 128},), rank=2, out=str(tmp_path / "o"))
    base = filled.build()
    made, records = Recipe([step]).apply(base, filled)
    assert isinstance(made.hidden, LowRankDelta)
    assert set(records[0].findings["tasks"]) == {"0-shapes", "1-shapes"}
    assert not torch.equal(made.wide.weight, base.wide.weight)  # the backbone moves: this is no frozen base
    shared = artifact.load(tmp_path / "o" / "backbone", model=filled.build())
    own = artifact.load(tmp_path / "o" / "0-shapes", model=shared)
    pictures = filled.example_batch()[0]
    with torch.no_grad():
        assert torch.equal(own(pictures), made(pictures))


def test_what_contradicts_is_refused():
    for knobs, why in (
        ({"tasks": ({"name": "shapes"},)}, "need a rank"),
        ({"tasks": ({"name": "shapes"},), "rank": 2, "checkpoint": "a"}, "no checkpoint"),
        ({"out": "folder"}, "give tasks"),
    ):
        with pytest.raises(ValidationError, match=why):
            InstructIPT(**knobs)
    assert "tasks" not in Recipe([InstructIPT()]).describe()["steps"][0]["instruct-ipt"]
    normed = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))
    with pytest.raises(ConfigError, match="0 is a batch norm"):
        train_jointly(normed, [Site(("1",), normed[1])], styles(), 2, Context(), None)
