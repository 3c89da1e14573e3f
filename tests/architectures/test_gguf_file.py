"""GGUF files that people bring damaged: cut anywhere, of unknown types, or no GGUF at all; one line each."""

from __future__ import annotations

import struct

import pytest

pytest.importorskip("gguf", reason="the [hf] extra is not installed")

from export_models import compact
from lessen.architectures.gguf_file import check_gguf
from lessen.cli import execute
from lessen.errors import DataError
from lessen.export.gguf.write import export_gguf
from tiny_language import byte_level, language_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    export_gguf(compact(language_model(), symmetric=True), byte_level(), path)
    return path.read_bytes()


def test_a_whole_file_passes(whole, tmp_path):
    (tmp_path / "m.gguf").write_bytes(whole)
    check_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.01, 0.05, 0.3, 0.7, 0.99])
def test_a_cut_is_said(whole, share, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match="is cut short"):
        check_gguf(path)


def test_what_is_no_gguf_and_foreign_versions_are_said(whole, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGML" + whole[4:])
    with pytest.raises(DataError, match="does not begin with the letters GGUF"):
        check_gguf(path)
    path.write_bytes(whole[:4] + struct.pack(">I", 3) + whole[8:])
    with pytest.raises(DataError, match="of another byte order"):
        check_gguf(path)


def test_an_unknown_type_is_named_with_its_tensor(whole, tmp_path):
    path, name = tmp_path / "m.gguf", b"blk.1.ffn_up.weight"
    at = whole.index(name) + len(name)
    rank = struct.unpack("<I", whole[at : at + 4])[0]
    at += 4 + 8 * rank
    path.write_bytes(whole[:at] + struct.pack("<I", 999) + whole[at + 4 :])
    with pytest.raises(DataError, match=r"tensor 'blk.1.ffn_up.weight' .*number 999.*write it as Q8_0"):
        check_gguf(path)


def test_the_command_says_it_in_one_line(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LESSEN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "m.gguf"
    path.write_bytes(whole[:-5000])
    for arguments in (("generate", str(path), "-p", "x"), ("profile", str(path))):
        assert execute(list(arguments)) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        assert "is cut short: tensor" in said


def test_our_own_file_is_read_back(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LESSEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(whole)
    status = execute(["generate", str(tmp_path / "m.gguf"), "-p", "the cat", "--completion", "--max-new-tokens", "4"])
    assert status == 0, capsys.readouterr().err


def test_text_is_cut_as_the_file_says(whole, tmp_path, monkeypatch):
    from lessen.architectures.loading import load_model

    monkeypatch.setenv("LESSEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(whole)
    text = "12 cats, 345 dogs! don't"
    assert load_model(str(tmp_path / "m.gguf"))[1](text)["input_ids"] == byte_level()(text)["input_ids"]


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_every_named_cut_is_told_again(name):
    import json

    from lessen.architectures.text_cuts import cut_of, name_of

    words = byte_level()
    words.backend_tokenizer.pre_tokenizer = cut_of(name)
    described = json.loads(words.backend_tokenizer.to_str())["pre_tokenizer"]
    assert name_of(described.get("pretokenizers", [described])) == name
    assert cut_of("unheard-of") is None
