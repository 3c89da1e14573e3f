"""Batches of any form, counted and moved; devices that are there and those that are not."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from lessen.errors import ConfigError
from lessen.testing.toys import TableTask
from lessen.train.device import find_device, to_device
from lessen.train.fit import fit
from lessen.train.nested import count_rows, count_tokens, map_tensors
from lessen.train.settings import FitSettings
from small_training import batches, calm, loss, small, train


@dataclass
class Pair:
    left: Tensor
    name: str


Point = namedtuple("Point", "x y")


def test_nested_batches_keep_their_form() -> None:
    one = torch.ones(3)
    batch = {"a": [one, (one, "text")], "pair": Pair(one, "n"), "point": Point(one, None), "n": 3}
    made = map_tensors(batch, lambda t: t + 1)
    assert made["a"][1][1] == "text"
    assert made["pair"] == Pair(made["pair"].left, "n")
    assert isinstance(made["point"], Point)
    assert made["n"] == 3
    for tensor in (made["a"][0], made["a"][1][0], made["pair"].left, made["point"].x):
        assert tensor.tolist() == [2, 2, 2]
    assert one.tolist() == [1, 1, 1]


def test_a_batch_that_is_there_is_given_back_itself_and_another_is_moved() -> None:
    batch = {"a": [torch.ones(3)]}
    assert to_device(batch, torch.device("cpu")) is batch
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].device.type == "meta"
    assert batch["a"][0].device.type == "cpu"


def test_rows_and_tokens_are_counted() -> None:
    ids, mask = torch.zeros(2, 5, dtype=torch.long), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    assert count_rows((torch.tensor(1.0), {"x": torch.zeros(7, 2)})) == 7
    assert count_rows("text") == 0
    assert count_tokens({"input_ids": ids}) == 10
    assert count_tokens(({"input_ids": ids, "attention_mask": mask}, torch.zeros(2))) == 5
    assert count_tokens((torch.zeros(4), torch.zeros(4))) == 0


@pytest.mark.parametrize("name", ["cuda:77", "gpu", "meta", "tpu:0"])
def test_a_device_that_is_not_there_is_one_line_and_nothing_is_done(name: str) -> None:
    model = small()
    before = model.table.weight.clone()
    with pytest.raises(ConfigError, match=f"device '{name}'") as caught:
        train(model, device=name)
    assert "\n" not in str(caught.value)
    assert torch.equal(model.table.weight, before)
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_a_gpu_gives_nearly_the_same_and_resumes(tmp_path) -> None:
    cpu, gpu = calm(), calm()
    settings = {"epochs": 4, "learning_rate": 0.02, "schedule": "cosine", "patience": None}

    def score(model: nn.Module) -> float:
        ids = torch.arange(20, device=next(model.parameters()).device)
        return -float(loss(model.eval(), (ids, (ids % 2).float())).detach())

    fit(cpu, batches=batches, loss=loss, validate=score, settings=FitSettings(**settings))
    fit(gpu, batches=batches, loss=loss, validate=score, settings=FitSettings(**settings), device="cuda")
    assert {p.device.type for p in gpu.parameters()} == {"cuda"}
    for a, b in zip(cpu.parameters(), gpu.parameters(), strict=True):
        assert torch.allclose(a, b.cpu(), atol=1e-3)


def test_a_task_may_stop_on_any_score_and_refuses_a_device_that_is_not_there() -> None:
    task, asked = TableTask(), []
    torch.manual_seed(0)
    model = task.build()
    done = task.train(model, validate=lambda m: -float(len(asked.append(1) or asked)))
    assert (done.best_epoch, done.best_score, len(asked)) == (1, -1.0, 2)
    with pytest.raises(ConfigError, match="device 'cuda:77' is not there"):
        task.train(model, device="cuda:77")
