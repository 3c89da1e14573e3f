"""Every cost equals its closed form on a model small enough to count by hand."""

import json

import pytest
import torch
from torch import nn

from lessen import files
from lessen.environment import environment
from lessen.errors import NonFiniteError, TaskError
from lessen.measure.memory import resident_bytes
from lessen.measure.record import (
    count_macs,
    count_parameters,
    measure_cost,
    measure_latency,
    measure_quality,
    reference_latency,
    with_latency,
)
from lessen.task import Workload
from toy import ToyNet, ToyTask


def test_multiply_adds_by_hand(toy):
    assert count_macs(toy, toy.build()) == 16 * 16 + 16 * 1


def test_parameters_count_ties_once(toy):
    model = toy.build()
    alone = count_parameters(model)
    assert alone == 2 * 64 * 8 + 16 * 16 + 16 + 16 + 1
    model.right.weight = model.left.weight
    assert count_parameters(model) == alone - 64 * 8


def test_resident_bytes_are_storages(toy):
    model = toy.build()
    assert resident_bytes(model) == 4 * count_parameters(model)
    table = nn.Embedding(10, 4)
    view = nn.Module()
    view.register_buffer("part", table.weight.detach()[:1])
    assert resident_bytes(view) == 160  # a view keeps the whole storage alive: a slice is no saving


def test_quality_has_intervals_around_the_value(toy):
    quality = measure_quality(toy, toy.build())
    for name, value in quality.values.items():
        low, high = quality.intervals[name]
        assert low < value < high
    assert len(quality.outcomes) == 2000


def test_quality_interval_is_the_same_twice(toy):
    model = toy.build()
    assert measure_quality(toy, model).intervals == measure_quality(toy, model).intervals


def test_costs_and_latency_join_into_one_object(toy):
    model = toy.build().eval()
    cost = measure_cost(toy, model, stored_bytes=123)
    record = with_latency(vars(cost), measure_latency(toy, model, model, rounds=5))
    assert record["stored_bytes"] == 123
    assert record["latency_ratio_ci"][0] <= record["latency_ratio"] <= record["latency_ratio_ci"][1]
    json.loads(files.dump_json(record))


def test_every_workload_is_timed_and_the_first_is_the_latency(toy):
    class Waiting(type(toy)):
        def workloads(self, items=4):
            batches = super().workloads(items)["forward"].items
            return {
                "prefill": Workload(self.forward, batches, 10, "tokens"),
                "decode": Workload(lambda model, batch: self.forward(model, batch[:1]), [batches[0][0]], 1, "tokens"),
            }

        def forward(self, model, batch):
            return model(batch if isinstance(batch, torch.Tensor) else batch[0])

    task = Waiting()
    model = task.build().eval()
    timed = measure_latency(task, model, model, rounds=8)
    assert list(timed) == ["prefill", "decode"]
    after, before = with_latency({}, timed), reference_latency({}, timed)
    assert after["latency_ms_p50"] == timed["prefill"].p50_ms
    assert after["throughput_per_s"] == timed["prefill"].throughput_per_s
    assert (after["decode_ms"], before["decode_ms"]) == (timed["decode"].p50_ms, timed["decode"].reference_p50_ms)
    assert after["decode_ratio_ci"][0] <= after["decode_ratio"] <= after["decode_ratio_ci"][1]


def test_timing_batches_differ_and_have_one_size(toy):
    batches = toy.workloads(2)["forward"].items
    assert len(batches) == 2
    assert not torch.equal(batches[0][0], batches[1][0])


class OneClass(ToyTask):
    def __init__(self):
        super().__init__()
        self.label = torch.ones_like(self.label)


class Empty(ToyTask):
    def batches(self, split, seed=0):
        return iter(()) if split == "test" else super().batches(split, seed)


def test_one_class_and_empty_splits_are_refused():
    with pytest.raises(TaskError, match="both classes"):
        measure_quality(OneClass(), ToyNet())
    with pytest.raises(TaskError, match="empty test split"):
        measure_quality(Empty(), ToyNet())
    with pytest.raises(TaskError, match="empty test split"):
        count_macs(Empty(), ToyNet())


def test_non_finite_scores_are_refused(toy):
    model = toy.build()
    with torch.no_grad():
        model.out.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="2000 of 2000 test scores"):
        measure_quality(toy, model)


def test_environment_names_no_place():
    text = json.dumps(environment())
    assert "/root" not in text
    assert "torch" in environment()["packages"]
