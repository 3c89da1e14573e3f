from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from tiny_models import llama

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

from lessen.cli.generate import register
from lessen.decoding import load_model
from lessen.errors import ConfigError, InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("model")
    llama(max_position_embeddings=512).save_pretrained(place)
    tokenizer.chat_template = "{% for message in messages %}{{ message.role[0] }}:{{ message.content }};{% endfor %}a:"
    tokenizer.save_pretrained(place)
    tokenizer.chat_template = None
    return str(place)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LESSEN_CACHE", str(tmp_path / "cache"))


def run(*arguments, text=None):
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, list(arguments), input=text)


def outputs(result):
    assert result.exit_code == 0, (result.output, result.exception)
    decoder = json.JSONDecoder()
    rest, found = result.stdout.strip(), []
    while rest:
        value, end = decoder.raw_decode(rest)
        found.append(value)
        rest = rest[end:].strip()
    return found


def test_a_model_without_a_template_continues_and_says_so(folder, tokenizer, tmp_path):
    llama(max_position_embeddings=512).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    words = ("-p", "abcabc", "--max-new-tokens", "6", "--json")
    plain = run(str(tmp_path / "plain"), *words)
    assert "has no chat template" in plain.stderr
    assert outputs(plain)[0]["outputs"] == outputs(run(folder, *words, "--completion"))[0]["outputs"]
    asked = run(str(tmp_path / "plain"), *words, "--chat")
    assert isinstance(asked.exception, InputError)
    assert "--completion" in str(asked.exception)


def test_completion_is_that_of_the_model(folder):
    (found,) = outputs(run(folder, "-p", "abcabcabc", "-p", "xyz", "--completion", "--max-new-tokens", "9", "--json"))
    model, tokenizer = load_model(folder)
    for output in found["outputs"]:
        ids = tokenizer(output["prompt"], return_tensors="pt")["input_ids"]
        want = model.generate(ids, max_new_tokens=9, do_sample=False)[0, ids.shape[1] :]
        assert output["text"] == tokenizer.decode(want, skip_special_tokens=True)
        assert output["new_tokens"] == len(want)
    assert found["report"]["prompts"] == 2


def test_streamed_text_is_the_whole_text(folder):
    streamed = run(folder, "-p", "abcabc", "--completion", "--max-new-tokens", "12")
    whole = run(folder, "-p", "abcabc", "--completion", "--max-new-tokens", "12", "--no-stream")
    assert streamed.stdout.strip() == whole.stdout.strip() != ""


def test_report_compares_with_plain_decoding(folder):
    result = run(folder, "-p", "abcabcabc", "--max-new-tokens", "12", "--report")
    assert result.exit_code == 0, result.exception
    assert "1 of 1 outputs identical (float32)" in result.stderr
    assert "plain decoding" in result.stderr


def test_measured_costs_are_kept_for_the_next_call(folder, tmp_path, monkeypatch):
    run(folder, "-p", "abc", "--max-new-tokens", "2")
    assert len(list((tmp_path / "cache" / "decoding").glob("costs-*.json"))) == 1
    monkeypatch.setattr("lessen.decoding.decoder.measure_costs", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr("lessen.decoding.decoder.costs_hold", lambda *_, **__: True)
    assert run(folder, "-p", "abc", "--max-new-tokens", "2").exit_code == 0


def test_costs_that_no_longer_hold_are_measured_again(folder, tmp_path, monkeypatch):
    run(folder, "-p", "abc", "--max-new-tokens", "2")
    (place,) = (tmp_path / "cache" / "decoding").glob("costs-*.json")
    kept = json.loads(place.read_text())
    place.write_text(json.dumps(kept | {"times": [10.0 * size * size for size in kept["sizes"]]}))
    assert run(folder, "-p", "abc", "--max-new-tokens", "2").exit_code == 0
    assert json.loads(place.read_text())["times"][-1] < 10.0


def test_the_end_of_the_context_is_said(folder):
    result = run(folder, "-p", "abcabcabc", "--completion", "--max-new-tokens", "100000", "--stop", "never said")
    assert result.exit_code == 0, result.exception
    assert "1 of 1 texts ended at the model's context of 512 tokens" in result.stderr
    (found,) = outputs(run(folder, "-p", "abcabcabc", "--completion", "--max-new-tokens", "100000", "--json"))
    assert found["outputs"][0]["finish"] == "context"


def test_bytes_on_standard_input_that_are_no_text_are_named(folder):
    result = run(folder, "--max-new-tokens", "2", text=b"hello\nab\xff\n")
    assert isinstance(result.exception, InputError)
    assert "UTF-8" in str(result.exception)


def test_a_conversation_over_standard_input(folder):
    found = outputs(run(folder, "--max-new-tokens", "5", "--json", text="hello\nhello again\n\nnever read\n"))
    assert [each["outputs"][0]["prompt"] for each in found] == ["hello", "hello again"]


def test_sampling_repeats_under_a_seed(folder):
    arguments = (
        folder,
        "-p",
        "abc",
        "--temperature",
        "0.9",
        "--top-k",
        "5",
        "--seed",
        "3",
        "--max-new-tokens",
        "9",
        "--json",
    )
    (first,), (second,) = outputs(run(*arguments)), outputs(run(*arguments))
    assert first["outputs"] == second["outputs"]


def test_a_prompt_from_a_file_and_a_stop_string(folder, tmp_path):
    (tmp_path / "prompt.txt").write_text("abcabcabc")
    options = ("--file", str(tmp_path / "prompt.txt"), "--completion", "--max-new-tokens", "20", "--json")
    (found,) = outputs(run(folder, *options))
    stop = found["outputs"][0]["text"][2:4]
    (stopped,) = outputs(run(folder, *options, "--stop", stop))
    assert stopped["outputs"][0]["text"].endswith(stop)
    assert stopped["outputs"][0]["finish"] == "stop string"


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("--report", "--temperature", "1.0", "-p", "a"), ConfigError, "--temperature 0"),
        (("--completion",), InputError, "--prompt or --file"),
        (("--completion", "-p", ""), InputError, "empty"),
        (("-p", " "), InputError, "empty"),
        (("-p", "a", "--dtype", "int3"), ConfigError, "int3"),
        (("-p", "a", "--report", "--max-time", "1"), ConfigError, "--max-time"),
        (("-p", b"a\xff".decode(errors="surrogateescape")), InputError, "stray byte"),
    ],
)
def test_mistakes_are_named(folder, arguments, kind, words):
    result = run(folder, *arguments)
    assert isinstance(result.exception, kind)
    assert words in str(result.exception)
