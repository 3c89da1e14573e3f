"""Answers to prompts: what is written equals `generate`, and is judged prompt by prompt."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

import lessen
from lessen.errors import ConfigError, DataError
from lessen.tasks import get_task
from tiny_models import llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("models") / "tiny"
    llama().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def written(folder, tokenizer, prompt, new=6):
    model = lessen.get_task({"name": "language", "model": str(folder)}).reference()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    return tokenizer.decode(
        model.generate(ids, max_new_tokens=new, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True
    )


def task(folder, rows, tmp_path, **options):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    text = tmp_path / "text.txt"
    text.write_text("\n".join(["abcdefgh" * 6] * 40))
    given = {"window": 16, "stride": 8, "unit": "line", "max_new_tokens": 6, "stop": None} | options
    return get_task(
        {"name": "language-answers", "model": str(folder), "text": str(text), "prompts": str(path), **given}
    )


def test_answers_are_what_generate_writes_and_are_judged(folder, tokenizer, tmp_path):
    right, wrong = written(folder, tokenizer, "abc"), "zzz"
    rows = [{"prompt": "abc", "answer": [wrong, right] if n == 0 else wrong} for n in range(10)]
    judge = task(folder, rows, tmp_path)
    outcomes = judge.outcomes(judge.reference())
    assert outcomes["right"].tolist() == [True, False]
    assert outcomes["written"].tolist() == [6, 6]
    assert judge.metrics["exact match"](outcomes) == 0.5
    assert outcomes["rouge_l"].tolist() == [1.0, 0.0]


def test_an_answer_ends_where_it_is_told_to(folder, tokenizer, tmp_path):
    whole = written(folder, tokenizer, "abc")
    judge = task(folder, [{"prompt": "abc", "answer": "x"}] * 10, tmp_path, stop=whole[2])
    text, tokens = judge.answer(judge.reference(), "abc")
    assert (text, tokens) == (whole.partition(whole[2])[0].strip(), 6)


def test_methods_learn_from_text_and_prompts_are_fingerprinted(folder, tmp_path):
    rows = [{"prompt": "abc", "answer": "x"}] * 10
    judge = task(folder, rows, tmp_path)
    assert next(iter(judge.batches("train")))[0]["input_ids"].shape[1] == 16
    known = judge.fingerprint()
    other = task(folder, [{"prompt": "abc", "answer": ["x", "y"]}, *rows[1:]], tmp_path)
    assert known != other.fingerprint()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ('{"prompt": "a"}', "line 1: not an object with"),
        ("[1]", "line 1: not an object with"),
        ('{"prompt": "a", "answer": 3}', "the answer a text or a list of texts"),
        ('{"prompt": "a", "answer": "b"}', "gives 1 test prompts"),
        ("{", "line 1: not an object with"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(folder, tmp_path, raw, said):
    judge = task(folder, [], tmp_path)
    (tmp_path / "prompts.jsonl").write_text(raw)
    with pytest.raises(DataError, match=said):
        judge.notes()


def test_a_chat_needs_a_template_and_a_file_must_be_there(folder, tmp_path):
    judge = task(folder, [{"prompt": "a", "answer": "b"}] * 10, tmp_path, chat=True)
    with pytest.raises(ConfigError, match="has no chat template; set chat=false"):
        judge.answer(judge.reference(), "abc")
    (tmp_path / "prompts.jsonl").unlink()
    with pytest.raises(DataError, match="no file of prompts"):
        judge.notes()
