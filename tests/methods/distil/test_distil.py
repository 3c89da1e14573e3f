"""Students of every source of teacher; plain torch modules and Hugging Face models."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lessen.artifact import folder as artifact
from lessen.errors import ArtifactError, ConfigError, InputError, NonFiniteError, TaskError
from lessen.log import Log
from lessen.method import Context
from lessen.methods import builtin_methods
from lessen.methods.distil.crd import CRD
from lessen.methods.distil.dkd import DKD
from lessen.methods.distil.fitnet import FitNet
from lessen.methods.distil.kd import KD
from lessen.methods.distil.rkd import RKD
from lessen.methods.weights.low_rank import LowRankLinears
from lessen.metrics import ACCURACY
from lessen.recipe import Recipe
from lessen.task import Task
from lessen.testing.toys import TableTask, TaughtTableTask
from lessen.train.settings import FitSettings
from lessen.train.teachers import DistilHook

METHODS = [KD, DKD, FitNet, RKD, CRD]


class Cnn(nn.Module):
    def __init__(self, width: int, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(dim=(2, 3)))


class Shapes(Task):
    """Noisy bars, crosses and corners of 8 x 8; labels of the train split are wrong now and then."""

    name = "shapes"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(epochs=10, learning_rate=2e-2, schedule="cosine", patience=None, keep="last")

    def build(self) -> nn.Module:
        return Cnn(8)

    def rows(self, split: str) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed({"train": 0, "validation": 1, "test": 2}[split])
        labels = torch.randint(0, 3, (96,), generator=generator)
        forms = torch.zeros(3, 1, 8, 8)
        forms[0, 0, 3:5], forms[1, 0, :, 3:5], forms[2, 0, 2:6, 2:6] = 1, 1, 1
        return forms[labels] + 0.4 * torch.randn(96, 1, 8, 8, generator=generator), labels

    def batches(self, split, seed=0):
        x, y = self.rows(split)
        order = torch.arange(96)
        if split == "train":
            order = torch.randperm(96, generator=torch.Generator().manual_seed(seed))
        for part in order.split(16):
            yield x[part], y[part]

    def loss(self, model: nn.Module, batch) -> Tensor:
        return nn.functional.cross_entropy(self.forward(model, batch), batch[1])


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    """The task with a teacher that is wider and was trained for longer."""
    task = Shapes()
    torch.manual_seed(5)
    master = Cnn(16)
    task.train(master, settings=replace(task.settings, epochs=20))
    return task.view(teacher=lambda seed: master)


@pytest.fixture(scope="module")
def student(shapes: Shapes) -> nn.Module:
    torch.manual_seed(1)
    return Cnn(8)


def test_all_five_are_in_the_catalogue_and_claim_quality() -> None:
    found = {name: cls for name, cls in builtin_methods().items() if cls.card.family == "distil"}
    assert set(METHODS) <= set(found.values())
    assert all(cls.card.claims == {"quality"} for cls in METHODS)


@pytest.mark.parametrize(
    "method",
    [
        KD(),
        DKD(),
        FitNet(),
        FitNet(layer="body", teacher_layer="body.3"),
        RKD(rows=16),
        RKD(angle=0.0),
        CRD(negatives=64, width=8),
    ],
    ids=["kd", "dkd", "fitnet", "fitnet-maps", "rkd", "rkd-distances", "crd"],
)
def test_the_teachers_term_falls_on_a_student_that_sees_no_label(
    method, shapes: Shapes, student: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms: list[float] = []
    whole = DistilHook.loss

    def told(self, model, batch, loss) -> Tensor:
        found = whole(self, model, batch, loss)
        terms.append(float(found.detach()))
        return found

    monkeypatch.setattr(DistilHook, "loss", told)
    alone = method.model_copy(update={"task_weight": 0.0})
    _, (step,) = Recipe([alone]).apply(student, shapes)
    assert sum(terms[-6:]) < 0.8 * sum(terms[:6])
    assert step.findings["teacher"] == "the task's"
    scores = step.findings["score_before"]
    assert scores["teacher"] > 0.8 > scores["student"]


def test_nothing_of_the_training_stays_on_the_student(shapes: Shapes, student: nn.Module) -> None:
    for cls in METHODS:
        taught, _ = Recipe([cls(epochs=1)]).apply(student, shapes)
        assert taught.state_dict().keys() == student.state_dict().keys()
        assert not taught._forward_hooks
        assert all(not module._forward_hooks and not module._forward_pre_hooks for module in taught.modules())


def test_without_the_teachers_term_it_is_the_tasks_training(shapes: Shapes, student: nn.Module) -> None:
    plain = copy.deepcopy(student)
    with torch.random.fork_rng():
        shapes.train(plain, seed=0)
    taught, _ = Recipe([KD(weight=0.0, task_weight=1.0)]).apply(student, shapes)
    for a, b in zip(plain.parameters(), taught.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_compressed_model_learns_from_the_one_it_was() -> None:
    task = TableTask()
    model = task.reference(0)
    compact, steps = Recipe([LowRankLinears(), KD(epochs=1)]).apply(model, task)
    assert steps[1].findings["teacher"] == "the given model"
    before, _ = Recipe([LowRankLinears()]).apply(model, task)
    assert type(compact.first) is type(before.first) is not nn.Linear
    assert not torch.equal(compact.items.weight, before.items.weight)
    with pytest.raises(TaskError, match="kd has nobody to learn from: task 'contract-tables' brings no teacher"):
        Recipe([KD()]).apply(model, task)
    fresh, _ = Recipe([KD(start="fresh", epochs=1)]).apply(model, task)
    assert not torch.equal(fresh.items.weight, model.items.weight)


def test_a_teacher_may_be_an_artifact(tmp_path: Path) -> None:
    task = TaughtTableTask()
    master = task.teacher(0)
    artifact.save(tmp_path / "master", master, task.build())
    student = task.reference(0)
    expected, _ = Recipe([KD(epochs=1)]).apply(student, task)
    found, steps = Recipe([KD(epochs=1, teacher=str(tmp_path / "master"))]).apply(student, TableTask())
    assert steps[0].findings["teacher"] == str(tmp_path / "master")
    for a, b in zip(expected.parameters(), found.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    with pytest.raises(ConfigError, match="kd: no teacher at .*none; give an artifact, a Hugging Face folder"):
        Recipe([KD(teacher=str(tmp_path / "none"))]).apply(student, TableTask())


def test_outputs_of_a_teacher_are_kept_and_those_of_another_refused(tmp_path: Path, shapes: Shapes, student) -> None:
    calls: list[int] = []
    master = shapes.teacher(0)
    handle = master.register_forward_hook(lambda *_: calls.append(1))
    method = KD(epochs=3, cache=str(tmp_path / "outputs"))
    try:
        one, _ = Recipe([method]).apply(student, shapes)
        first = len(calls)
        two, _ = Recipe([method]).apply(student, shapes)
    finally:
        handle.remove()
    # each time two looks at the teacher (does it answer, and as whom) and 6 batches to score it; of twice 3 epochs of 6 batches only the first asks
    assert (first, len(calls) - first) == (14, 8)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    other = copy.deepcopy(master)
    with torch.no_grad():
        other.head.bias += 1
    with pytest.raises(ArtifactError, match="holds the outputs of another teacher"):
        Recipe([method]).apply(student, shapes.view(teacher=lambda seed: other))


def test_bad_teachers_are_one_line(shapes: Shapes, student: nn.Module) -> None:
    other = shapes.view(teacher=lambda seed: Cnn(8, classes=5))
    for cls in (KD, DKD):
        with pytest.raises(TaskError, match=r"the teacher answers with shape \(16, 5\), the student with \(16, 3\)"):
            Recipe([cls()]).apply(student, other)
    Recipe([FitNet(epochs=1)]).apply(student, other)  # features may come from other classes
    broken = Cnn(8)
    with torch.no_grad():
        broken.head.bias[0] = torch.nan
    with pytest.raises(NonFiniteError, match="the teacher gave NaN or infinity for 16 of 48 values"):
        Recipe([KD()]).apply(student, shapes.view(teacher=lambda seed: broken))
    for cls in METHODS:
        with pytest.raises(
            InputError, match=r"the teacher, a Linear, cannot answer batches of task 'shapes': RuntimeE"
        ):
            Recipe([cls()]).apply(student, shapes.view(teacher=lambda seed: nn.Linear(5, 3)))
    with pytest.raises(ConfigError, match="Cnn has no module 'bodi' to read"):
        Recipe([FitNet(layer="bodi")]).apply(student, shapes)

    class Notes(Log):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    log = Notes()
    worse = shapes.view(teacher=lambda seed: Cnn(2))
    KD(epochs=1).apply(copy.deepcopy(shapes.teacher(0)), worse, Context(log=log))
    assert any("no better than the student at its start" in note for note in log.notes)


class Sentences(Task):
    """Sequences in which the next token is the last one plus 1 or 2; the mask hides the end of some."""

    name = "sentences"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(
        epochs=4, learning_rate=1e-2, schedule="cosine", patience=None, keep="last", optimizer="adamw"
    )

    def __init__(self, layers: int) -> None:
        self.layers = layers

    def build(self) -> nn.Module:
        transformers = pytest.importorskip("transformers")
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=24,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=self.layers,
                num_attention_heads=2,
                num_key_value_heads=1,
                bos_token_id=0,
                eos_token_id=0,
            )
        )

    def batches(self, split, seed=0):
        generator = torch.Generator().manual_seed(hash((len(split), seed)) % 1000)
        for _ in range(6):
            steps = 1 + torch.randint(0, 2, (8, 10), generator=generator)
            ids = steps.cumsum(dim=1) % 24
            mask = torch.ones_like(ids)
            mask[::2, 7:] = 0
            yield {"input_ids": ids, "attention_mask": mask}

    def inputs(self, batch):
        return batch

    def target(self, batch) -> Tensor:
        return batch["input_ids"][:, -1]

    def predict(self, model, batch) -> Tensor:
        return self.forward(model, batch)[:, -2].float()

    def loss(self, model, batch) -> Tensor:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return model(**batch, labels=labels).loss


@pytest.mark.parametrize("method", [KD(temperature=1.0), CRD(negatives=16, width=8)])
def test_a_hugging_face_student_learns_from_a_folder(method, tmp_path: Path) -> None:
    deep, shallow = Sentences(2), Sentences(1)
    torch.manual_seed(0)
    master, student = deep.build(), shallow.build()
    deep.train(master)
    master.save_pretrained(tmp_path / "master")
    named = method.model_copy(update={"teacher": str(tmp_path / "master")})
    taught, (step,) = Recipe([named]).apply(student, shallow)
    assert step.findings["trained"]["epochs"] == 4
    batch = next(iter(shallow.batches("test")))
    with torch.no_grad():
        losses = [float(shallow.loss(model.eval(), batch)) for model in (taught, student)]
    assert losses[0] < losses[1] - 0.2
    if isinstance(method, KD):
        plain = copy.deepcopy(student)
        shallow.train(plain)
        with torch.no_grad():
            wanted, *found = (m.eval()(**batch).logits.log_softmax(-1) for m in (master, plain, taught))
        gaps = [float((wanted.exp() * (wanted - own)).sum(-1)[batch["attention_mask"].bool()].mean()) for own in found]
        assert gaps[1] < gaps[0]
        with pytest.raises(TaskError, match="dkd needs a class for each of 68 rows, the task gives 8; use kd"):
            Recipe([DKD(teacher=named.teacher)]).apply(student, shallow)


def test_a_step_may_set_its_rate_and_its_time(shapes: Shapes, student: nn.Module) -> None:
    assert KD().paced(shapes) is shapes
    paced = KD(learning_rate=1e-7, minutes=0.5).paced(shapes)
    assert (paced.settings.learning_rate, paced.settings.minimum_learning_rate) == (1e-7, 1e-7)
    assert paced.settings.max_seconds == 30
    assert Recipe([KD()]).hash == Recipe([KD(learning_rate=None)]).hash
    still, _ = Recipe([KD(learning_rate=1e-9, epochs=1)]).apply(student, shapes)
    for a, b in zip(still.parameters(), student.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


class NoModule(TaughtTableTask):
    def teacher(self, seed):
        return {"seed": seed}


def test_a_teacher_that_is_no_module_is_named():
    task = NoModule()
    with pytest.raises(TaskError, match=r"kd: teacher\(seed\) of task .* gives dict; let it return a torch module"):
        Recipe([KD(epochs=1)]).apply(task.build(), task)
