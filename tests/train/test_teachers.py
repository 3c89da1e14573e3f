from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lessen.errors import ArtifactError, ConfigError, DataError, NonFiniteError, TaskError
from lessen.train import output_cache
from lessen.train.fit import fit
from lessen.train.output_cache import OutputCache, row_keys
from lessen.train.settings import FitSettings
from lessen.train.taps import OUTPUT, Outputs
from lessen.train.teachers import DistilHook, Teacher, digest_of, open_teacher


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.ReLU())
        self.head = nn.Linear(width, 3)
        self.calls: list[tuple[int, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((len(x), self.training, torch.is_autocast_enabled("cpu")))
        return self.head(self.body(x))


def net(seed: int = 0, width: int = 8) -> Net:
    torch.manual_seed(seed)
    return Net(width)


def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return model(batch[0])


def read(output: Tensor, _model: nn.Module) -> Tensor:
    return output


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def rows(seed: int = 0, count: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def shuffled(epoch: int) -> list[tuple[Tensor, Tensor]]:
    """The same 64 rows in another order each epoch, 16 a batch."""
    x, y = rows()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(epoch))
    return [(x[part], y[part]) for part in torch.split(order, 16)]


class Matches(DistilHook):
    def distil(self, loss: Tensor, student: Outputs, teacher: Outputs, batch: object) -> Tensor:
        self.last = (student, teacher)
        return loss + sum((student[name] - teacher[name]).square().mean() for name in (OUTPUT, *self.taps))


def train(model: nn.Module, teacher: Teacher, epochs: int = 3, taps: tuple[str, ...] = (), **settings) -> Matches:
    hook = Matches(teacher, read, taps)
    fit(
        model,
        batches=shuffled,
        loss=loss,
        validate=lambda _: 0.0,
        settings=FitSettings(epochs=epochs, patience=None, learning_rate=0.01, keep="last", **settings),
        hooks=(hook,),
    )
    return hook


def test_a_teacher_is_asked_in_eval_mode_without_gradients_and_stays_as_it_is() -> None:
    model = net().train()
    model.body[1].eval()
    before, batch = copy.deepcopy(model.state_dict()), rows()
    teacher = Teacher(model, forward, taps=["body.0", "body"])
    given = teacher(batch)
    assert model.calls == [(64, False, False)]
    assert [m.training for m in (model, model.body[0], model.body[1])] == [True, True, False]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    expected = copy.deepcopy(model).eval()
    assert torch.equal(given[OUTPUT], expected(batch[0]))
    assert torch.equal(given["body.0"], expected.body[0](batch[0]))
    assert torch.equal(given["body"], expected.body(batch[0]))
    assert not any(tensor.requires_grad for tensor in given.values())
    assert not model._forward_hooks


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_hook_gets_both_outputs_of_the_same_batch(precision: str) -> None:
    master, student = net(1), net(2)
    hook = train(student, Teacher(master, forward, taps=["body"]), 1, ("body",), precision=precision)
    own, given = hook.last
    assert own["body"].shape == given["body"].shape == (16, 8)
    assert given[OUTPUT].dtype == torch.float32
    assert own[OUTPUT].requires_grad
    assert not any(autocast for _, _, autocast in master.calls)  # the teacher has its own precision
    assert not student._forward_hooks
    assert not student.body._forward_hooks


def test_a_student_comes_nearer_to_its_teacher() -> None:
    master, plain = net(1), net(2)
    taught = copy.deepcopy(plain)
    fit(
        plain,
        batches=shuffled,
        loss=loss,
        validate=lambda _: 0.0,
        settings=FitSettings(epochs=20, patience=None, learning_rate=0.01, keep="last"),
    )
    train(taught, Teacher(master, forward), 20)
    x = rows(9, 200)[0]
    gap = [float((m.eval()(x) - master.eval()(x)).detach().square().mean()) for m in (plain, taught)]
    assert gap[1] < 0.7 * gap[0]


def test_cached_outputs_train_the_same_and_ask_the_teacher_once_a_row(tmp_path: Path) -> None:
    steady = {"optimizer": "sgd"}  # Adam divides by the size of a gradient, and so makes rounding large
    master, fresh = net(1), net(2)
    cached = copy.deepcopy(fresh)
    train(fresh, Teacher(master, forward), 4, **steady)
    master.calls.clear()
    train(cached, Teacher(master, forward, cache=OutputCache(tmp_path / "c")), 4, **steady)
    assert [rows for rows, _, _ in master.calls] == [16] * 4  # the first epoch's; the others come from disk
    again = copy.deepcopy(cached)
    master.calls.clear()
    train(again, Teacher(master, forward, cache=OutputCache(tmp_path / "c")), 4, **steady)
    assert not master.calls
    assert sorted(path.name[:5] for path in (tmp_path / "c").iterdir()) == ["part-", "teach"]
    # rows come in other batches than when they were computed: a matter of rounding
    restarted = copy.deepcopy(net(2))
    train(restarted, Teacher(master, forward, cache=OutputCache(tmp_path / "c")), 4, **steady)
    for a, b in zip(fresh.parameters(), restarted.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_cache_of_another_teacher_or_other_outputs_is_refused(tmp_path: Path) -> None:
    Teacher(net(1), forward, cache=OutputCache(tmp_path)).close()
    Teacher(net(1), forward, cache=OutputCache(tmp_path))
    for teacher, taps in ((net(2), ()), (net(1), ("body",))):
        with pytest.raises(ArtifactError, match="holds the outputs of another teacher, or other outputs of this one"):
            Teacher(teacher, forward, taps=taps, cache=OutputCache(tmp_path))
    assert digest_of(net(1)) == digest_of(net(1)) != digest_of(net(2))


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    teacher = Teacher(net(1), forward, cache=OutputCache(tmp_path))
    teacher(rows())
    teacher.close()
    (part,) = tmp_path.glob("part-*")
    raw = part.read_bytes()
    for bad in (raw[:-1], raw[:50], raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:], b""):
        part.write_bytes(bad)
        with pytest.raises(ArtifactError, match="remove it, and its rows are computed again") as caught:
            Teacher(net(1), forward, cache=OutputCache(tmp_path))
        assert "\n" not in str(caught.value)


def test_the_limit_bounds_the_disk_and_the_rest_is_computed(tmp_path: Path) -> None:
    master = net(1)
    cache = OutputCache(tmp_path, limit=700)
    teacher = Teacher(master, forward, cache=cache)
    first, second = teacher(rows(1, 16)), teacher(rows(2, 16))
    teacher.close()
    assert 0 < len(cache._first) < 32
    assert sum(path.stat().st_size for path in tmp_path.glob("part-*")) < 700 + 400  # a header beside the rows
    assert torch.equal(teacher(rows(2, 16))[OUTPUT], second[OUTPUT])
    assert torch.equal(teacher(rows(1, 16))[OUTPUT], first[OUTPUT])
    with pytest.raises(ConfigError, match="a cache of 0 bytes"):
        OutputCache(tmp_path, limit=0)


def test_rows_of_several_forms_and_parts_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_cache, "PART_BYTES", 100)
    cache = OutputCache(tmp_path)
    cache.open("digest", ["a"])
    keys = np.arange(18, dtype=np.uint64).reshape(9, 2)
    wide, narrow = torch.randn(6, 5), torch.randn(3, 2)
    cache.add(keys[:6], {"a": wide})
    cache.add(keys[6:], {"a": narrow})
    cache.flush()
    again = OutputCache(tmp_path)
    again.open("digest", ["a"])
    for one in (cache, again):
        assert torch.equal(one.find(keys[[4, 0]])["a"], wide[[4, 0]])  # type: ignore[index]
        assert torch.equal(one.find(keys[6:])["a"], narrow)  # type: ignore[index]
        assert one.find(keys[[0, 7]]) is None
        assert one.find(np.array([[0, 1], [0, 2]], dtype=np.uint64)) is None


def test_keys_tell_rows_apart_by_every_byte_type_and_place() -> None:
    x, y = torch.arange(12).view(4, 3), torch.arange(4)
    keys = row_keys((x, y))
    assert keys.shape == (4, 2)
    assert keys.dtype == np.uint64
    assert len(np.unique(keys)) == 8
    assert np.array_equal(row_keys((x.flip(0), y.flip(0))), keys[::-1])
    assert np.array_equal(row_keys({"b": {"c": x[1:3]}, "d": y[1:3]}), keys[1:3])
    changed = x.clone()
    changed[2, 1] += 1 << 40
    assert (row_keys((changed, y)) == keys).tolist() == [[True] * 2, [True] * 2, [False] * 2, [True] * 2]
    for other in ((x.double(), y), (x.view(4, 3, 1), y), (x, y.int()), (x,)):
        assert not np.isin(row_keys(other), keys).any()
    same = torch.zeros(4000, 50, dtype=torch.uint8)
    same[torch.arange(4000), torch.arange(4000) % 50] = (torch.arange(4000) // 50).byte() + 1
    assert len(np.unique(row_keys(same)[:, 0])) == 4000
    with pytest.raises(DataError, match="equally many"):
        row_keys((x, torch.zeros(5)))


def test_a_teacher_that_gives_nan_is_one_line() -> None:
    broken = net(1)
    with torch.no_grad():
        broken.head.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="the teacher gave NaN or infinity for 16 of 48 values; nothing can be"):
        train(net(2), Teacher(broken, forward))


def test_parts_that_are_not_there_are_named() -> None:
    with pytest.raises(ConfigError, match="Net has no module 'bodi' to read; did you mean 'body'"):
        Teacher(net(1), forward, taps=["bodi"])
    with pytest.raises(ConfigError, match="Net has no module 'heda' to read; did you mean 'head'"):
        train(net(2), Teacher(net(1), forward), taps=("heda",))

    def passes_by(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model.head(model.body(batch[0])), batch[1])  # type: ignore[operator]

    with pytest.raises(TaskError, match="the model was not called as a whole in this step"):
        fit(
            net(2),
            batches=shuffled,
            loss=passes_by,
            validate=lambda _: 0.0,
            settings=FitSettings(),
            hooks=(Matches(Teacher(net(1), forward), read),),
        )


def test_a_module_or_a_folder_is_opened(tmp_path: Path) -> None:
    model = net().train()
    assert open_teacher(model) is model
    assert not model.training
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    host = transformers.LlamaForCausalLM(config).eval()
    host.save_pretrained(tmp_path)
    opened = open_teacher(tmp_path)
    ids = torch.randint(0, 32, (2, 7))
    teacher = Teacher(opened, lambda m, b: m(**b).logits, taps=["model.layers.0"])
    given = teacher({"input_ids": ids})
    assert torch.allclose(given[OUTPUT], host(input_ids=ids).logits, atol=1e-6)
    assert given["model.layers.0"].shape == (2, 7, 16)
    with pytest.raises(ConfigError, match=str(tmp_path / "none")):
        open_teacher(tmp_path / "none")


@pytest.mark.parametrize(("answer", "said"), [((torch.ones(4, 3),), "tuple"), (None, "NoneType")])
def test_a_teacher_whose_forward_gives_no_tensor_is_refused(answer, said):
    teacher = Teacher(net(), lambda _model, _batch: answer)
    with pytest.raises(TaskError, match=f"forward gives {said} for the teacher, a Net; let it return the one tensor"):
        teacher((torch.ones(4, 6), torch.zeros(4, dtype=torch.int64)))
