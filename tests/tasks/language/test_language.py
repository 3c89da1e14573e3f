"""Perplexity by document equals an independent computation; windows judge every token once."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

import lessen
from lessen.capabilities import capabilities
from lessen.errors import ConfigError, DataError
from lessen.tasks import get_task
from lessen.tasks.language.perplexity import LanguageTask
from lessen.tasks.language.windows import UNJUDGED, judged, packed, windows
from tiny_models import gpt2, llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("models") / "tiny"
    llama().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(12, 60, (200,), generator=draw).tolist()
    letters = "abcdefghijklmnopqrstuvwxyz"
    path.write_text("\n".join("".join(letters[i] for i in torch.randint(0, 26, (n,), generator=draw)) for n in lengths))
    return path


def task(folder, text, **options):
    given = {"window": 32, "stride": 16, "prefill": 8, "unit": "line", "documents": 40} | options
    return get_task({"name": "language", "model": str(folder), "text": str(text), **given})


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(1, 8, 4), (2, 8, 4), (8, 8, 8), (9, 8, 4), (50, 8, 3), (50, 8, 7)]
)
def test_every_token_but_the_first_is_judged_once_with_enough_before_it(length, window, stride):
    ids = torch.arange(100, 100 + length)
    found = []
    for number, each in enumerate(windows(ids, window, stride)):
        assert len(each.ids) <= window
        places = (each.labels != UNJUDGED).nonzero().flatten().tolist()
        assert torch.equal(each.labels[places], each.ids[places])
        assert 0 not in places
        if number:
            assert min(places) >= window - stride
        found += each.labels[places].tolist()
    assert found == list(range(101, 100 + length))


def test_sums_are_those_of_a_log_softmax():
    logits, ids = torch.randn(300, 17), torch.randint(0, 17, (300,))
    labels = ids.clone()
    labels[:5] = UNJUDGED
    nll, tokens, right = judged(logits, labels)
    wanted = -torch.log_softmax(logits.double(), 1)[:-1].gather(1, ids[1:, None])[4:]
    assert tokens == 295
    assert nll == pytest.approx(float(wanted.sum()), rel=1e-6)
    assert right == int((logits[:-1].argmax(1) == ids[1:])[4:].sum())


def test_outcomes_are_those_of_each_document_alone(folder, text):
    judge = task(folder, text)
    model = judge.reference()
    outcomes = judge.outcomes(model)
    assert len(outcomes) == 40
    short = [n for n, one in enumerate(judge.texts("test")) if len(one) <= 32][:5]
    for number in short:
        ids = judge.tokenizer(judge.texts("test")[number], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = model(ids, labels=ids).loss  # the library's own mean over all but the first token
        assert outcomes["nll"][number] / outcomes["tokens"][number] == pytest.approx(float(loss), rel=1e-5)
    assert outcomes["tokens"].tolist() == [len(one) - 1 for one in judge.texts("test")]
    assert outcomes["bytes"].tolist() == [len(one) - 1 for one in judge.texts("test")]
    values = {name: metric(outcomes) for name, metric in judge.metrics.items()}
    mean = outcomes["nll"].sum() / outcomes["tokens"].sum()
    assert values["perplexity"] == pytest.approx(math.exp(mean))
    assert values["bits per byte"] == pytest.approx(mean / math.log(2))


def test_a_compact_model_is_judged_on_the_same_documents_and_kept(folder, text, tmp_path):
    judge = task(folder, text)
    trade = lessen.compress(judge.reference(), judge, {"linear-int8": {"min_weights": 1}}, margin=50.0)
    assert trade.verdict in ("within margin", "better", "not enough data to say")
    assert trade.measurement.cost["stored_bytes"] < trade.measurement.reference["cost"]["stored_bytes"]
    trade.save(tmp_path / "small")
    loaded = lessen.load(tmp_path / "small")
    with torch.no_grad():
        ids = judge.example_batch()[0]["input_ids"]
        assert torch.equal(loaded(ids).logits, trade.model(ids).logits)


def test_prefill_and_decode_are_what_is_timed(folder, text):
    judge = task(folder, text, decode=3)
    work, model = judge.workloads(items=2), judge.reference()
    assert [(name, one.units, one.unit) for name, one in work.items()] == [
        ("prefill", 8, "tokens"),
        ("decode", 3, "tokens"),
    ]
    ids = work["decode"].items[1]
    assert ids.shape == (1, 8)
    wanted = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    for _ in range(2):  # the second call starts from the cache that the first one read
        assert work["decode"].call(model, ids).item() == wanted[0, -1]
    with torch.no_grad():
        assert torch.allclose(work["prefill"].call(model, ids), model(ids).logits[:, -1], atol=1e-6)


def test_methods_may_calibrate_and_train(folder, text):
    judge = task(folder, text, batch=8)
    assert {"text", "training", "calibration"} <= capabilities(judge)
    first, again = (next(iter(judge.batches("train", seed=seed)))[0]["input_ids"] for seed in (0, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, next(iter(judge.batches("train", seed=1)))[0]["input_ids"])
    assert first.shape == (8, 32)
    model = judge.build()
    before = judge.score(model, "validation")
    judge.train(model, settings=lessen.FitSettings(epochs=4, learning_rate=3e-3))
    assert judge.score(model, "validation") > before


def test_splits_share_no_document(folder, text):
    judge = task(folder, text, documents=1000, train_documents=1000, validation_documents=1000)
    parts = [judge.texts(split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [120, 40, 40]
    assert len({one for part in parts for one in part}) == 200


def test_documents_are_packed_with_an_end_between_them():
    rows = packed([torch.tensor([5, 6, 7]), torch.tensor([8, 9])], window=3, end=1)
    assert rows.tolist() == [[5, 6, 7], [1, 8, 9]]


def test_what_does_not_fit_is_refused(folder, text, tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="window 512 is longer than the 128 positions"):
        next(iter(task(folder, text, window=512).batches("test")))
    with pytest.raises(ConfigError, match="stride 32 must be less than the window 32"):
        task(folder, text, stride=32)
    short = tmp_path / "short.txt"
    short.write_text("abc\n\nabcdef\n\nx")
    with pytest.raises(DataError, match="gives 1 test documents .* at least two are needed"):
        task(folder, short, unit="paragraph").texts("test")
    with pytest.raises(DataError, match="no text at"):
        task(folder, tmp_path / "none.txt").texts("test")
    llama(vocab=10).save_pretrained(tmp_path / "narrow")
    tokenizer.save_pretrained(tmp_path / "narrow")
    with pytest.raises(ConfigError, match="ids up to 39, and the model has 10 rows; they do not belong together"):
        task(tmp_path / "narrow", text).texts("test")  # though no text has one of them: nothing would generate from it
    more = copy.deepcopy(tokenizer)
    more.add_special_tokens({"additional_special_tokens": ["<more>"]})
    llama(vocab=40).save_pretrained(tmp_path / "special")
    more.save_pretrained(tmp_path / "special")
    odd = tmp_path / "odd.txt"
    odd.write_text("\n\n".join(["abc <more> def"] * 20))
    with pytest.raises(DataError, match="gives token 40, and .* has 40 rows; they do not belong together"):
        task(tmp_path / "special", odd, unit="paragraph").texts("test")
    with pytest.raises(ConfigError, match="no model folder"):
        task(tmp_path / "absent", text).build()
    with pytest.raises(ConfigError, match="did you mean 'window'"):
        task(folder, text, windw=3)


def test_another_model_is_judged_by_the_same_task(folder, text, tmp_path, tokenizer):
    gpt2().save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    judge = task(folder, text).hosted(str(tmp_path / "other"))
    assert type(judge.reference()).__name__ == "GPT2LMHeadModel"
    assert judge.texts("test") == task(folder, text).texts("test")
    assert isinstance(judge.build(), nn.Module)


def test_the_built_in_task_says_its_name():
    described = get_task({"name": "language-smollm2"}).describe()
    assert described["model"] == "smollm2-135m-instruct"
    assert isinstance(get_task(described), LanguageTask)


@pytest.mark.slow
def test_smollm2_on_news():
    from lessen.data.cache import cache_folder

    if not (cache_folder() / "models" / "smollm2-135m-instruct" / "config.json").exists():
        pytest.skip("SmolLM2 is not in the cache; run: lessen generate smollm2-135m-instruct -p hello")
    judge = get_task({"name": "language-smollm2", "documents": 8})
    value = judge.metrics["perplexity"](judge.outcomes(judge.reference()))
    assert 20 < value < 45
