"""The time of a forward as a sum over its operations, each from figures of the machine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lessen.measure import machine as machines
from lessen.measure import samples
from lessen.measure.machine import Grid, Machine
from lessen.measure.work import DECODED, LINEAR, VIEW, Operation, Work, watched, work_of
from lessen.recipe import Recipe
from lessen.stored.linears.clustered import ClusteredLinear, ClusteredMatrix
from lessen.testing.toys import TableTask


def proportional(axes, rate):
    seconds = np.log(rate * np.prod(np.array(np.meshgrid(*axes, indexing="ij"), dtype=float), axis=0))
    return Grid(axes, seconds, seconds + np.log(2))


def test_a_grid_gives_back_what_is_proportional_between_and_beyond_its_points():
    grid = proportional(((1, 8, 64), (32, 128), (32, 128)), 1e-9)
    for sizes in ((1, 32, 32), (5, 77, 99), (64, 128, 128), (500, 300, 4000), (2, 3, 4)):
        assert grid.seconds(sizes, 0.0) == pytest.approx(1e-9 * np.prod(sizes), rel=0.3 if min(sizes) < 32 else 1e-6)
    assert grid.seconds((8, 64, 64), 1.0) == pytest.approx(2 * grid.seconds((8, 64, 64), 0.0))


def test_beyond_a_grid_a_call_is_never_cheaper_than_at_its_edge():
    flat = np.zeros((2, 2))
    grid = Grid(((1, 8), (32, 64)), flat - 9, flat - 9)
    assert grid.seconds((1, 1), 0.0) == pytest.approx(np.exp(-9))
    falling = Grid(((1, 8), (32, 64)), np.array([[-9.0, -10.0], [-9.0, -10.0]]), flat - 9)
    assert falling.seconds((4, 640), 0.0) == pytest.approx(np.exp(-10))


def test_lines_find_the_rates_that_samples_were_made_with(monkeypatch):
    rates = (2e-6, 1e-10, 0.0)
    calls = [(10**power, 4 * 10**6, (2e-6 + 1e-10 * 10**power)) for power in range(3, 8)]
    monkeypatch.setattr(machines, "timed", lambda seconds: seconds)
    assert machines._line(calls) == pytest.approx(rates, rel=1e-3, abs=1e-14)


def test_operations_of_a_model_are_counted_as_torch_counts_them():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).train()
    inputs = torch.randn(2, 7, 32)
    found = watched(model, lambda: model(inputs))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    macs = sum(count * (int(np.prod(one.sizes)) if one.kind == LINEAR else one.macs) for one, count in found.items())
    assert macs == 2 * 7 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * (2 * 4 * 7 * 7 * 8)  # layers, and attention's two products
    assert macs == counter.get_total_flops() // 2
    assert found[Operation(VIEW)] > 0


def test_a_layer_with_a_kernel_tells_its_own_work_and_nothing_inside_it_counts_twice():
    task = TableTask()
    torch.manual_seed(0)
    model = task.build().eval()
    before = next(iter(work_of(task, model).values()))
    compact, _ = Recipe.parse({"steps": [{"linear-int8": {"min_weights": 64}}]}).apply(model, task)
    after = next(iter(work_of(task, compact).values()))
    rows = task.units_in(task.example_batch())
    assert {one.sizes for one in after.operations if one.kind == "int8-linear row"} == {
        (rows, 24, 64), (rows, 64, 64), (rows, 64, 1)
    }  # fmt: skip
    assert not any(one.kind == LINEAR for one in after.operations)
    assert sum(count for one, count in before.operations.items() if one.kind == LINEAR) == 3
    assert after.weight_bytes < before.weight_bytes


def test_figures_come_back_from_the_cache_and_what_is_damaged_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LESSEN_CACHE", str(tmp_path))
    machine = Machine({LINEAR: proportional(((1, 8), (32, 64), (32, 64)), 1e-9)}, {VIEW: (1e-6, 0.0, 0.0)})
    place = machines.place_of()
    machines.save(place, machine)
    read = machines.known()
    work = Work({Operation(LINEAR, (4, 40, 40)): 2, Operation(VIEW): 3}, 10**5)
    assert read.seconds(work) == pytest.approx(machine.seconds(work), rel=1e-3)
    assert machines.known(threads=2) is None  # other figures hold
    assert read.unknown(Work({Operation("spqr"): 1}, 1)) == ["spqr"]
    for text in ("{}", "nonsense", '{"grids": {"linear": {"axes": [[1]], "near": [1, 2], "far": []}}, "lines": {}}'):
        place.write_text(text)
        assert machines.known() is None


def test_a_layer_that_holds_its_weight_decoded_tells_so_beside_its_product():
    model = nn.Sequential(ClusteredLinear(ClusteredMatrix(8, 16, 4)))
    found = watched(model, lambda: model(torch.ones(3, 16)))
    assert found[Operation(DECODED)] == 1
    assert found[Operation(LINEAR, (3, 16, 8))] == 1


def test_models_that_take_turns_share_the_caches():
    axes = ((1, 8), (32, 64), (32, 64))
    machine = Machine({LINEAR: proportional(axes, 1e-9)}, {})
    work = Work({Operation(LINEAR, (8, 64, 64)): 1}, machines.NEAR)
    alone, beside = machine.seconds(work), machine.seconds(work, machines.FAR)
    assert beside == pytest.approx(2 * alone)


def test_every_sample_runs_under_the_name_that_work_gives_it():
    for name, axes, make in samples.grids():
        make(*(axis[0] for axis in axes[1:]))(axes[0][0])()
        assert name
    for kind, calls in samples.lines().items():
        if kind == DECODED:  # a layer tells of it, and is no part of the model that is watched here
            continue
        model = nn.Identity()
        named = {one.kind for one in watched(model, calls[0][2])}
        assert kind in named, (kind, named)
