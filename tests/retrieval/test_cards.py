"""Methods of retrieval on hosts that are not ours: what each promises, seen in numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lessen.errors import ConfigError, DataError, NothingMatchedError, TaskError
from lessen.method import Context
from lessen.methods.retrieval.cfcd import CFCD
from lessen.methods.retrieval.fdp import FDP
from lessen.methods.retrieval.lbl2vec import Lbl2Vec
from lessen.methods.retrieval.sd_dino import SDDino
from lessen.methods.retrieval.spn4cir import SPN4CIR
from lessen.metrics import ACCURACY
from lessen.recipe import Recipe
from lessen.retrieval.fusing import fused
from lessen.retrieval.matches import cells_of, hard_tuples, local_triplets, matched_cells
from lessen.retrieval.spotting import FocusedHead, FoldedHead
from lessen.retrieval.words import WordVectors
from lessen.stored.linears.cosine_head import CosineHead
from lessen.stored.vectors.flat import FlatVectors
from lessen.stored.vectors.fused import FusedVectors
from lessen.task import Task
from lessen.tasks.language.manual import ManualOptions, ManualTask
from lessen.tasks.retrieval.composed import ComposedNet, ComposedOptions, ComposedTask
from lessen.tasks.retrieval.vectors import VectorsOptions, VectorsTask
from lessen.tasks.retrieval.words import WordsOptions, WordsTask, _edits, balanced
from lessen.train.settings import FitSettings


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# -- sd-dino ----------------------------------------------------------------------------------------------------------
def test_of_full_width_an_index_of_two_towers_gives_the_weighed_mean_of_both_cosines():
    rows, queries = torch.randn(40, 10) * torch.tensor([1000.0] * 4 + [1.0] * 6), torch.randn(3, 10)
    made = FusedVectors.of(rows, split=4, left=4, right=6, alpha=0.3)
    mean = rows.mean(0)
    expected = fused((queries - mean)[:, :4], (queries - mean)[:, 4:], 0.3) @ (
        fused((rows - mean)[:, :4], (rows - mean)[:, 4:], 0.3).t()
    )
    torch.testing.assert_close(made(queries), expected, atol=1e-4, rtol=1e-4)
    scaled = FusedVectors.of(rows * torch.tensor([7.0] * 4 + [1.0] * 6), split=4, left=4, right=6, alpha=0.3)
    torch.testing.assert_close(scaled.vectors.abs(), made.vectors.abs(), atol=1e-4, rtol=1e-4)
    for bad in ({"split": 10}, {"left": 5}, {"alpha": 1.5}, {"alpha": True}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            FusedVectors(0, 10, **{"split": 4, "left": 4, "right": 6, "alpha": 0.3, **bad})


def test_two_noisy_towers_find_more_together_than_either(tmp_path):
    hidden = torch.randn(400, 16)
    maps = torch.randn(16, 64), torch.randn(16, 96)

    def seen(noise=1.5):
        return torch.cat([F.normalize((hidden + noise * torch.randn(400, 16)) @ one, dim=1) for one in maps], dim=1)

    rows, queries = seen(), seen()
    net = nn.Sequential(FlatVectors.of(rows))  # a plain container of torch
    task = VectorsTask(VectorsOptions(rows=20, dim=4, queries=2, k=1))
    made = SDDino(split=64, share=32 / 160).apply(net, task, Context())
    right = {
        name: float((scores.argmax(1) == torch.arange(400)).double().mean())
        for name, scores in {
            "left": queries[:, :64] @ rows[:, :64].t(), "right": queries[:, 64:] @ rows[:, 64:].t(),
            "fused": made(queries),
        }.items()
    }  # fmt: skip
    assert right["fused"] > 1.2 * max(right["left"], right["right"])
    assert made[0].row_bytes == 4 * 32
    with pytest.raises(ConfigError, match="split = 160"):
        SDDino(split=160).apply(nn.Sequential(FlatVectors.of(rows)), task, Context())


# -- cfcd -------------------------------------------------------------------------------------------------------------
class Blobs(Task):
    """A user's own: maps of three classes, a hidden width of one's own."""

    name, metrics = "blobs", {"accuracy": ACCURACY}
    settings = FitSettings(epochs=3, learning_rate=1e-2)

    def build(self):
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)
        )

    def batches(self, split, seed=0):
        generator = torch.Generator().manual_seed(len(split))
        for _ in range(3):
            labels = torch.randint(3, (24,), generator=generator)
            yield (
                (
                    torch.randn(24, 1, 8, 8, generator=generator)
                    + torch.eye(3).repeat_interleave(3, 1)[labels][:, None, None, :8]
                ),
                labels,
            )

    def loss(self, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])


def test_what_is_served_is_the_trained_head_with_its_norm_folded_in():
    from lessen.methods.retrieval.cfcd import _Trained

    head = _Trained(7, 5, 3, 0.02)
    for _ in range(5):
        head.train()(torch.randn(16, 7) * 2 + 1)
    inputs = torch.randn(9, 7)
    made = head.eval().settled()
    torch.testing.assert_close(made.embed(inputs), head.embed(inputs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made(inputs), head(inputs), atol=1e-4, rtol=1e-5)
    with pytest.raises(TaskError, match="one vector an example"):
        head(torch.randn(2, 4, 7))


def test_a_plain_network_gets_a_short_embedding_and_still_tells_classes_apart():
    task = Blobs()
    model = Recipe([CFCD(dim=6, epochs=8)]).apply(task.build(), task)[0]
    assert isinstance(model[-1], CosineHead)
    assert model[-1].dim == 6
    assert task.score(model, "test") > 0.6  # chance is a third, give or take 0.06


def test_a_network_without_maps_says_how_to_train_it_all_the_same():
    task = Blobs()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(TaskError, match="local_weight: 0"):
        CFCD(dim=4, epochs=1).apply(flat, task, Context())
    assert isinstance(CFCD(dim=4, epochs=1, local_weight=0).apply(flat, task, Context())[-1], CosineHead)


def test_cells_of_one_picture_twice_match_where_they_are_and_strangers_not():
    cells, strength = cells_of(torch.randn(1, 8, 3, 4))
    left, right = matched_cells(cells[0], cells[0], strength[0])
    assert torch.equal(left, right)
    assert set(right.tolist()) == set((strength[0] >= strength[0].median()).nonzero()[:, 0].tolist())
    same = torch.ones(4, 8)  # every distance equal: nothing is clearly nearest
    assert len(matched_cells(F.normalize(same, dim=1), F.normalize(same, dim=1), torch.ones(4))[0]) <= 1
    maps = torch.randn(3, 8, 3, 4, requires_grad=True)
    loss = local_triplets(maps, [])
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert float(maps.grad.abs().sum()) == 0.0
    near = maps.detach()[:1].repeat(3, 1, 1, 1)
    assert float(local_triplets(near, [(0, 1, [2])])) == pytest.approx(0.1)  # the negative is as near: the margin alone


def test_hard_negatives_are_of_other_classes_and_the_mistaken_first():
    labels = torch.tensor([0, 0, 1, 1, 2])
    found = torch.tensor([0, 0, 0, 1, 2])  # row 2 was taken for class 0
    tuples = hard_tuples(labels, found, torch.Generator().manual_seed(0))
    assert [anchor for anchor, _, _ in tuples] == [0, 1, 2, 3]  # the only one of its class has no positive
    for anchor, positive, negatives in tuples:
        assert labels[anchor] == labels[positive]
        assert anchor != positive
        assert all(labels[row] != labels[anchor] for row in negatives)
    assert 2 in tuples[0][2]
    assert set(tuples[2][2]) <= {0, 1}  # a mistaken anchor's: the class it was taken for


# -- spn4cir ----------------------------------------------------------------------------------------------------------
def test_the_tower_of_targets_is_found_frozen_and_its_index_stays_valid():
    task = ComposedTask(ComposedOptions(items=200, examples=320))
    model = ComposedNet()
    task.train(model, settings=FitSettings(epochs=1, learning_rate=1e-3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made, records = Recipe([SPN4CIR(epochs=8)]).apply(model, task)
    after = made.state_dict()
    assert torch.equal(after["pictures.weight"], before["pictures.weight"])
    assert not torch.equal(after["text.0.weight"], before["text.0.weight"])
    assert records[0].findings["frozen"] == 32 * 33
    assert all(one.requires_grad for one in made.parameters())
    assert task.score(made, "test") > task.score(model, "test")


def test_a_shared_tower_is_refused_and_so_is_a_bank_that_moves():
    class Shared(ComposedTask):
        def bank(self, model):
            return model.text(torch.zeros(5, 24)) + model.pictures(self.items[:5])

    task = Shared(ComposedOptions(items=40, examples=32))
    with pytest.raises(TaskError, match="a query side of its own"):
        SPN4CIR().apply(ComposedNet(), task, Context())


# -- lbl2vec ----------------------------------------------------------------------------------------------------------
def test_words_are_weighed_by_how_few_documents_hold_them():
    texts = ["the wing and the lift", "the heat of the plate", "the wing bends", "heat flows"]
    counted = WordVectors(texts)
    assert "the" not in counted.places  # in more than half of the documents
    vectors = counted([*texts, "nothing known"])
    torch.testing.assert_close(vectors[:4].norm(dim=1), torch.ones(4))
    assert float(vectors[4].norm()) == 0.0
    assert float(vectors[0] @ vectors[2]) > 0 == float(vectors[0] @ vectors[3])
    assert counted.typical([texts[0], texts[2]], 1) == ["wing"]
    with pytest.raises(DataError, match="no word"):
        WordVectors(["a", "b"])


def test_keywords_choose_the_texts_that_training_sees():
    task = ManualTask(ManualOptions(documents=2, steps=2))
    context = Context()
    seen = Lbl2Vec(topics=(("import", "module", "package"), ("string", "format")), share=0.2).prepare(task, context)
    texts = seen.texts("train")
    assert len(texts) == context.findings["texts"] == max(1, round(0.2 * context.findings["of"]))
    whole = task.texts("train")

    def share(found):
        return sum("import" in text or "format" in text for text in found) / len(found)

    assert share(texts) > share(whole)
    assert seen.texts("validation") == task.texts("validation")
    assert seen.fingerprint() == task.fingerprint()
    for bad, error, said in (
        ({"topics": ((),)}, ConfigError, "topic 0 has no keyword"),
        ({"topics": (("qqqq",),)}, DataError, "no training text holds any of qqqq"),
    ):
        with pytest.raises(error, match=said):
            Lbl2Vec(**bad).prepare(task, Context())


def test_a_task_whose_batches_do_not_follow_its_texts_is_refused():
    task = ManualTask(ManualOptions(documents=2, steps=2))
    fixed = task.view(batches=lambda split, seed=0: [next(iter(task.batches(split, 0)))])
    with pytest.raises(TaskError, match="do not come from its texts"):
        Lbl2Vec().prepare(fixed, Context())


def test_nothing_to_fuse_is_an_error():
    with pytest.raises(NothingMatchedError, match="sd-dino"):
        SDDino().apply(
            nn.Sequential(nn.Linear(2, 2)), VectorsTask(VectorsOptions(rows=20, dim=4, queries=2, k=1)), Context()
        )


# -- fdp --------------------------------------------------------------------------------------------------------------
def test_the_folded_head_answers_as_the_trained_one_with_a_fraction_of_its_numbers():
    head = FocusedHead(16, 3, 5, heads=2).eval()
    model = nn.Sequential(nn.Conv2d(3, 16, 1), head)  # a plain network whose head it is
    pictures = torch.randn(4, 3, 3, 5)
    expected = model(pictures)
    made = Recipe([FDP()]).apply(model, VectorsTask(VectorsOptions(rows=20, dim=4, queries=2, k=1)))[0]
    torch.testing.assert_close(made(pictures), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        made[1].scores(model[0](pictures)), head.scores(model[0](pictures)), atol=1e-5, rtol=1e-5
    )
    assert sum(one.numel() for one in made[1].parameters()) < 0.4 * sum(one.numel() for one in head.parameters())
    with pytest.raises(NothingMatchedError, match="fdp"):
        FDP().apply(nn.Sequential(nn.Linear(2, 2)), WordsTask(WordsOptions(words=4, examples=16)), Context())
    with pytest.raises(ValueError, match="heads do not divide"):
        FoldedHead(16, 3, 5, 3)


def test_words_an_edit_away_share_the_likeness_and_cells_without_text_do_not_drown_those_with():
    task = WordsTask(WordsOptions(words=8, examples=32))
    assert len(set(task.words)) == 8
    assert _edits("tru", "trs") == 1
    assert _edits("tru", "ru") == 1
    assert _edits("abc", "") == 3
    assert torch.equal(task._near[:, 0], torch.arange(8))  # a word is nearest to itself
    assert float(task._likeness[:, 0].min()) > 0.99
    masks = torch.zeros(1, 20)
    masks[0, :2] = 1
    scores = torch.full((1, 20), -3.0)
    scores[0, 5] = 4.0  # one cell without text that errs most
    each = F.binary_cross_entropy_with_logits(scores, masks, reduction="none")
    expected = (each[0, :2].sum() + each[0, 5] + 5 * each[0, 6]) / 8
    torch.testing.assert_close(balanced(scores, masks), expected)
    (pictures, letters), numbers, masks = next(iter(task.batches("train")))
    assert pictures.shape[1:] == (1, 24, 72)
    assert letters.shape == (8, 5)
    assert bool((masks.sum(1) > 0).all())
    assert int(numbers.max()) < 8
