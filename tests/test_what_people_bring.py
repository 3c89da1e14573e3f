"""What people hand to `compress` and `compare`: whatever is wrong with it is one line, before any work."""

import pytest
import torch
from torch import nn

import lessen
from lessen.errors import InputError, TaskError
from lessen.metrics import AUC, Metric
from lessen.task import Task
from lessen.train.settings import FitSettings

STEP = {"emb-rowwise-quant": {"bits": 4, "min_rows": 1}}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(300, 8)
        self.out = nn.Linear(8, 1)

    def forward(self, ids):
        return self.out(self.table(ids)).squeeze(-1)


class Bag(Net):
    def __init__(self):
        super().__init__()
        self.table = nn.EmbeddingBag(300, 8)
        self.table.padding_idx = 500

    def forward(self, ids):
        return self.out(self.table(ids[:, None])).squeeze(-1)


class Silent(Net):
    def forward(self, ids):
        return None


class Rows(Task):
    name = "rows"
    metrics = {"auc": AUC}

    def build(self):
        return Net()

    def batches(self, split, seed=0):
        ids = torch.arange(64) * 7 % 300
        yield ids, (ids % 2).float()


class Words(Rows):
    def batches(self, split, seed=0):
        yield "words", torch.zeros(3)


class Lost(Rows):
    def batches(self, split, seed=0):
        raise OSError("the disk is gone")


class Coarse(Rows):
    def predict(self, model, batch):
        return self.forward(model, batch).bfloat16()


def padded():
    model = Net()
    model.table.padding_idx = 300
    return model


def sparse(name):
    model = Net()
    if name == "buffer":
        model.register_buffer("links", torch.eye(4).to_sparse())
    else:
        model.table.weight = nn.Parameter(model.table.weight.detach().to_sparse())
    return model


def nested():
    model = Net()
    model.register_buffer("parts", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
    return model


BAD = {
    "nested buffer": (nested, Rows, {}, "parts of the model is nested; store it dense"),
    "padding_idx": (padded, Rows, {}, "cannot call Net on its first test batch: AssertionError: Padding_idx"),
    "padding_idx of a bag": (Bag, Rows, {}, "cannot call Bag on its first test batch: RuntimeError: padding_idx"),
    "no output": (Silent, Rows, {}, "returned a NoneType"),
    "words": (Net, Words, {}, "cannot call Net on its first test batch: "),
    "data": (Net, Lost, {}, "first test batch: OSError: the disk is gone"),
    "sparse buffer": (lambda: sparse("buffer"), Rows, {}, "links of the model is sparse; store it dense"),
    "sparse weight": (lambda: sparse("weight"), Rows, {}, "table.weight of the model is sparse; store it dense"),
    "no model": (lambda: "net", Rows, {}, "the model must be a torch.nn.modules.module.Module, and is net"),
    "a class": (lambda: Net, Rows, {}, "and is the class Net; make one: Net()"),
    "a task class": (Net, lambda: Rows, {}, "the task must be a lessen.task.Task, and is the class Rows"),
    "seed": (Net, Rows, {"seed": 2**70}, "seed = 1180591620717411303424 is not accepted"),
    "fraction of a seed": (Net, Rows, {"seed": 0.5}, "seed = 0.5 is not accepted"),
    "no threads": (Net, Rows, {"threads": 0}, "threads = 0 is not accepted: give a whole number from 1 to 1024"),
    "threads": (Net, Rows, {"threads": 100_000}, "threads = 100000 is not accepted"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_line_before_any_work(case, monkeypatch):
    monkeypatch.setattr("lessen.recipe.Recipe.apply", lambda *_, **__: pytest.fail("worked"))
    model, task, more, said = BAD[case]
    with pytest.raises(InputError) as caught:
        lessen.compress(model(), task(), STEP, margin=1.0, **more)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        lessen.compare(model(), model(), task(), margin=1.0, **more)


def test_scores_in_bfloat16_are_judged_and_kept(tmp_path):
    trade = lessen.compress(Net(), Coarse(), STEP, margin=1.0)
    trade.save(tmp_path / "small")
    assert lessen.verify(tmp_path / "small", model=Net()).probe == "equal"


def test_data_in_bfloat16_have_a_fingerprint_of_their_own():
    class Halves(Rows):
        dtype = torch.bfloat16

        def batches(self, split, seed=0):
            yield torch.arange(4).to(self.dtype), torch.zeros(4)

    first = Halves()
    second = first.view(dtype=torch.float32)
    assert first.fingerprint() != second.fingerprint()


def own_metric(**members):
    """A metric of somebody's own, defined anew each time it is named."""
    return type("Own", (Metric,), members)()


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({}, "names no metric; give it some by name"),
        (None, "names no metric"),
        ({"auc": lambda scores, targets: 0.5}, "the metric 'auc' of task 'rows' is a function, not an instance"),
        ({"auc": type(AUC)}, "is the class AreaUnderCurve, not an instance"),
        ({"m": own_metric(weighted=lambda self, outcomes, weights: 1 / 0)}, "'Own' failed on 64 units: ZeroDivision"),
        ({"m": own_metric(weighted=lambda self, outcomes, weights: 0.5)}, r"'Own' gives \[\] values for 1 rows"),
        ({"m": own_metric(weighted=lambda self, outcomes, weights: weights[:, :2])}, r"gives \[1, 2\] values"),
        (
            {"m": own_metric(weighted=lambda self, outcomes, weights: weights[:, 0] * float("nan"))},
            "gives nan for what",
        ),
        (
            {"m": own_metric(weighted=lambda self, outcomes, weights: weights[:, 0] * float("inf"))},
            "gives inf for what",
        ),
    ],
)
def test_a_metric_that_is_none_or_fails_is_one_line(metrics, told):
    task = Rows()
    task.metrics = metrics
    with pytest.raises(TaskError, match=told):
        lessen.compress(Net(), task, STEP, margin=0.01)


@pytest.mark.parametrize(
    ("predict", "told"),
    [
        (lambda scores: scores.mean(), "a batch gives a single number; it must give one row an example"),
        (lambda scores: scores[:, None].expand(-1, len(scores) % 7 + 1), "rows of one batch have shape .*, of another"),
    ],
)
def test_scores_that_are_no_rows_are_one_line(predict, told):
    class Batches(Rows):
        def batches(self, split, seed=0):
            for size in (64, 40):
                ids = torch.arange(size) * 7 % 300
                yield ids, (ids % 2).float()

        def predict(self, model, batch):
            return predict(self.forward(model, batch))

    with pytest.raises(TaskError, match=f"the test scores of task 'rows': {told}"):
        lessen.compress(Net(), Batches(), STEP, margin=0.01)


class Gradients(Rows):
    """A task whose model asks for sparse gradients, or for rows that are made shorter at each look-up."""

    settings = FitSettings(epochs=1)

    def __init__(self, **options):
        self.options = options

    def build(self):
        model = Net()
        model.table = nn.Embedding(300, 8, **self.options)
        return model

    def loss(self, model, batch):
        return nn.functional.binary_cross_entropy_with_logits(self.forward(model, batch), batch[1])


@pytest.mark.parametrize("step", [STEP, {"emb-lsq": {"bits": 4, "min_rows": 1}}, {"emb-cafe": {"share": 0.5}}])
def test_tables_with_sparse_gradients_are_compressed_and_trained(step):
    task = Gradients(sparse=True)
    trade = lessen.compress(task.build(), task, step, margin=1.0)
    cost = trade.measurement.cost["stored_bytes"], trade.measurement.reference["cost"]["stored_bytes"]
    assert cost[0] < cost[1]


@pytest.mark.parametrize("step", [STEP, {"emb-lsq": {"bits": 4, "min_rows": 1}}, {"emb-cafe": {"share": 0.5}}])
def test_a_table_that_renormalises_is_refused_by_name_before_anything_is_trained(step, monkeypatch):
    monkeypatch.setattr("lessen.task.fit", lambda *_, **__: pytest.fail("trained"))
    task = Gradients(max_norm=1.0)
    with pytest.raises(InputError, match=r"table: renormalises its rows at lookup \(max_norm\)"):
        lessen.compress(task.build(), task, step, margin=1.0)
