"""`lessen index` over token sets: built, searched, reported, removed; what does not fit is one line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lessen.cli.index import app
from lessen.errors import ConfigError, DataError
from small_encoder import small_encoder

TEXTS = [
    f"{a} {b} {c}" for a in ("storm", "price", "goal") for b in ("harbour", "oil", "match") for c in ("rain", "bank")
]


def run(*arguments):
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def encoder(tmp_path):
    return small_encoder(tmp_path / "e")


@pytest.fixture
def built(tmp_path, encoder):
    rows = "".join(json.dumps({"id": f"t{n}", "text": text}) + "\n" for n, text in enumerate(TEXTS))
    (tmp_path / "rows.jsonl").write_text(rows)
    said = run("build", tmp_path / "i", "--texts", tmp_path / "rows.jsonl", "--encoder", encoder, "--multi",
               "--encoding", "6,2,8", "--length", 16, "--json")  # fmt: skip
    return tmp_path / "i", json.loads(said)


def test_token_sets_are_built_searched_judged_and_removed(built, tmp_path, encoder):
    index, said = built
    assert (said["documents"], said["added"], said["encoding"], said["tokens"]) == (18, 18, 6 * 4 * 8, "float16")
    assert said["token_bytes_a_document"] == 3 * 16 * 2
    again = json.loads(run("build", index, "--texts", tmp_path / "rows.jsonl", "--encoder", encoder, "--multi",
                           "--length", 16, "--json"))  # fmt: skip
    assert (again["added"], again["there"]) == (0, 18)
    exact = json.loads(run("search", index, "--text", TEXTS[7], "--exact", "-k", 3, "--json"))
    found = json.loads(run("search", index, "--text", TEXTS[7], "--candidates", 18, "-k", 3, "--json"))
    assert exact[0]["ids"][0] == "t7"
    assert found[0]["ids"] == exact[0]["ids"]
    assert exact[0]["scores"][0] == pytest.approx(3.0, abs=1e-2)  # three tokens that find themselves
    judged = json.loads(run("report", index, "-k", 3, "--candidates", 18, "--json"))
    assert (judged["recall"], judged["of"]) == (1.0, "openings of documents as queries")
    (tmp_path / "asked.txt").write_text("storm rain\ngoal\n")
    assert "2 queries" in run("report", index, "--queries", tmp_path / "asked.txt", "-k", 2)
    assert "17 are left" in run("remove", index, "t7")
    assert json.loads(run("search", index, "--text", TEXTS[7], "--exact", "--json"))[0]["ids"].count("t7") == 0


def test_what_does_not_fit_token_sets_is_one_line(built, tmp_path, encoder):
    index, _ = built
    rows, plain = tmp_path / "rows.jsonl", tmp_path / "plain"
    run("build", plain, "--texts", rows, "--encoder", encoder, "--length", 16)
    (tmp_path / "empty.txt").write_text("storm\n\nrain\n")
    build = ("build", tmp_path / "new", "--encoder", encoder, "--multi")
    for arguments, error, said in (
        (("export", index, "--out", tmp_path / "x.faiss"), ConfigError, "no faiss file has a place for"),
        (("search", index, "--vectors", rows), ConfigError, "--text"),
        (("search", index, "--text", "storm " * 40), DataError, "has 40 tokens and the encoder reads 16"),
        (("search", plain, "--text", "storm", "--exact"), ConfigError, "one vector a document"),
        (("report", plain, "--candidates", 4), ConfigError, "--multi"),
        (("report", index, "--against", rows), ConfigError, "leave --against out"),
        (("build", plain, "--texts", rows, "--encoder", encoder, "--multi", "--length", 16), ConfigError, "--multi"),
        (("build", index, "--texts", rows, "--encoder", encoder, "--length", 16), ConfigError, "add to it with --multi"),
        (("build", index, "--texts", rows, "--encoder", encoder, "--multi", "--length", 8), ConfigError, "do not mix"),
        ((*build, "--vectors", rows), ConfigError, "give --texts"),
        ((*build, "--texts", rows, "--encoding", "20,x"), ConfigError, "'20,x' is not understood"),
        ((*build, "--texts", rows, "--encoding", "20,9,4"), ConfigError, "bits = 9"),
        ((*build, "--texts", rows, "--tokens", "int4"), ConfigError, "float32, float16, int8"),
        ((*build, "--texts", tmp_path / "empty.txt"), DataError, "line 2 is an empty document"),
    ):  # fmt: skip
        with pytest.raises(error, match=said) as caught:
            run(*arguments)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
