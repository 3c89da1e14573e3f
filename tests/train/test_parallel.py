"""Two processes over gloo against one with the same batches: weights, tables, BatchNorm, scores, exact resume."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
from torch import nn

from forked_script import ForkedScript
from lessen.errors import ConfigError, DataError
from lessen.train.fit import fit
from lessen.train.hooks import Hook
from lessen.train.parallel import Group, SharedBatchNorm, check_parallel, group
from lessen.train.settings import FitSettings

WORKER = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from lessen.errors import EnvironmentFault
from lessen.train.fit import fit
from lessen.train.hooks import Hook
from lessen.train.settings import FitSettings
from lessen.train.parallel import group

out = Path(sys.argv[1])
torch.set_num_threads(1)

class Net(nn.Module):
    # no bias before BatchNorm: its gradient is rounding noise, which Adam would blow up
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(60, 4, padding_idx=0)
        self.deep = nn.Sequential(nn.Linear(12, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    def forward(self, ids):
        return self.deep(self.table(ids).flatten(1)).squeeze(1)

torch.manual_seed(0)
ids = torch.randint(1, 60, (203, 3), dtype=torch.int32)
label = (ids[:, 0] % 2).double()
def batches(epoch):
    order = torch.randperm(203, generator=torch.Generator().manual_seed(epoch))
    for start in range(0, 203, 50):  # the last batch has three rows, two of them on the first process
        pick = order[start:start + 50]
        yield {"ids": ids[pick]}, label[pick]
def loss(model, batch):
    return nn.functional.binary_cross_entropy_with_logits(model(**batch[0]), batch[1])

class Hint(Hook):
    # a term of the rows through a layer of its own, and a term of the weights
    def start(self, model):
        self.module = nn.Linear(4, 1).double()
    def loss(self, model, batch, loss):
        found = self.module(model.table(batch[0]["ids"][:, 0])).squeeze(1)
        return 0.5 * loss + (found - batch[1]).square().mean() + 0.01 * model.deep[0].weight.square().sum()

calls = []
def validate(model):
    calls.append(1)
    return -float(loss(model.eval(), ({"ids": ids}, label)).detach())
def train(ranks, updates, epochs, checkpoint=None):
    torch.manual_seed(ranks.rank)  # the copies start apart: the first process's weights must be spread
    model, more, hooks = Net().double(), {}, ()
    if updates == "hooked":
        updates, hooks = "lazy-adam", (Hint(),)
        more = {"accumulate": 2, "schedule": "cosine", "warmup_steps": 2}
    settings = FitSettings(
        epochs=epochs, learning_rate=0.01, table_l2=1e-3, table_updates=updates, patience=9, **more)
    done = fit(model, batches=batches, loss=loss, validate=validate, settings=settings, seed=1, ranks=ranks,
               checkpoint=checkpoint, hooks=hooks)
    assert done.examples == epochs * 203, done.examples
    assert type(model.deep[1]) is nn.BatchNorm1d
    return model, done

try:
    with group() as ranks:
        notes = {}
        for updates in ("dense", "lazy-adam", "rowwise-adagrad", "hooked"):
            del calls[:]
            model, done = train(ranks, updates, 3)
            torch.save(dict(model.state_dict()), out / f"{updates}-{ranks.size}-{ranks.rank}.pt")
            notes[updates] = {"calls": len(calls), "score": done.best_score, "loss": [h["loss"] for h in done.history]}
        for epochs in (1, 3):
            model, _ = train(ranks, "lazy-adam", epochs, out / f"state{ranks.size}")
        torch.save(dict(model.state_dict()), out / f"resumed-{ranks.size}-{ranks.rank}.pt")
        (out / f"notes-{ranks.size}-{ranks.rank}.json").write_text(json.dumps(notes))
        if ranks.size == 2 and ranks.first:
            raise SystemExit(0)  # leaves while the other still waits
        ranks.wait()
except EnvironmentFault as error:
    (out / "left-alone").write_text(str(error))
"""


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _start(script: Path, size: int, arguments: list[str]) -> None:
    """Start `size` processes with the variables of torchrun."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_port()), "WORLD_SIZE": str(size)}
    processes = [
        ForkedScript(
            script, arguments, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, Path(f"{script}.{rank}")
        )
        for rank in range(size)
    ]
    for status, errors in [process.ended() for process in processes]:
        assert status == 0, errors[-2000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same trainings by one process and by two."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "worker.py").write_text(WORKER)
    for size in (1, 2):
        _start(folder / "worker.py", size, [str(folder)])
    return folder


@pytest.mark.parametrize("updates", ["dense", "lazy-adam", "rowwise-adagrad", "hooked"])
def test_two_processes_train_as_one_does(updates: str, runs: Path) -> None:
    one, first, second = (_weights(runs / f"{updates}-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for name, expected in one.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name].double(), expected.double(), rtol=0, atol=1e-9), name
    notes = [json.loads((runs / f"notes-{name}.json").read_text())[updates] for name in ("1-0", "2-0", "2-1")]
    assert [note["calls"] for note in notes] == [3, 3, 0]  # the first process alone validates
    assert notes[1]["score"] == notes[2]["score"] == pytest.approx(notes[0]["score"], abs=1e-9)
    assert notes[1]["loss"] == pytest.approx(notes[0]["loss"], abs=1e-9)


def test_a_stopped_pair_resumes_exactly(runs: Path) -> None:
    for name in ("1-0", "2-0", "2-1"):
        whole, parts = _weights(runs / f"lazy-adam-{name}.pt"), _weights(runs / f"resumed-{name}.pt")
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_process_that_is_left_alone_says_so(runs: Path) -> None:
    assert (runs / "left-alone").read_text() == ("process 1 of 2: another process stopped; its own message says why")


def _weights(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found


def test_rows_are_dealt_out_and_the_rest_of_fewer_is_left_out() -> None:
    ranks = Group(1, 3)
    batches = [({"ids": torch.arange(7)}, torch.arange(7)), ({"ids": torch.arange(2)}, torch.arange(2))]
    (own,) = list(ranks.shard(batches))
    assert own[0]["ids"].tolist() == [1, 4]
    assert ranks.weight == pytest.approx(2 / 7)
    parts = [part for rank in range(3) for part in Group(rank, 3).shard([torch.arange(7)])]
    assert sorted(torch.cat(parts).tolist()) == list(range(7))
    with pytest.raises(DataError, match="equally many rows"):
        list(ranks.shard([(torch.arange(4), torch.arange(5))]))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 but RANK is not set; start the processes with torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a whole number from 1 on"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "RANK is 2, but WORLD_SIZE is 2"),
    ],
)
def test_wrong_variables_are_refused(variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message), group():
        pass


def test_what_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with group() as alone:
        assert (alone.rank, alone.size, alone.first) == (0, 1, True)
    with pytest.raises(ConfigError, match="a batch of 2 rows cannot be shared by 3 processes"):
        check_parallel(Group(0, 3), 2)
    alone_only = type("Alone", (Hook,), {"parallel": False})()
    with pytest.raises(ConfigError, match="hook Alone needs all rows of a batch in one place; train with one process"):
        fit(
            nn.Linear(2, 1),
            batches=lambda _: [],
            loss=lambda m, b: b,
            validate=lambda m: 0.0,
            settings=FitSettings(),
            hooks=(alone_only,),
            ranks=Group(0, 2),
        )
    with pytest.raises(ConfigError, match="the checkpoint is of 1 processes, not 2"):
        Group(0, 2).restore({"torch": torch.get_rng_state()})


def test_shared_batch_norm_in_evaluation_is_the_original() -> None:
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(20, 3))
    shared, x = SharedBatchNorm(norm).eval(), torch.randn(5, 3)
    assert torch.equal(shared(x), norm.eval()(x))
    assert shared.state_dict().keys() == norm.state_dict().keys()
