"""`lessen index`: build, search, report, remove and export, with lines for what goes wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from lessen.cli.index import app
from lessen.errors import ArtifactError, ConfigError, DataError, NonFiniteError
from small_encoder import small_encoder

RUN = CliRunner()
ROWS = torch.nn.functional.normalize(torch.randn(400, 16, generator=torch.Generator().manual_seed(0)), dim=1).numpy()


def run(*arguments):
    done = RUN.invoke(app, [str(one) for one in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def vectors(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    return tmp_path / "rows.npy"


@pytest.fixture
def encoder(tmp_path):
    return small_encoder(tmp_path / "e")


def test_vectors_are_indexed_searched_reported_and_removed(tmp_path, vectors):
    index = tmp_path / "index"
    built = json.loads(run("build", index, "--vectors", vectors, "--form", "bits1+int8", "--json"))
    assert (built["added"], built["documents"], built["bytes_a_document"]) == (400, 400, 2 + 4 + 16 + 4)
    again = json.loads(run("build", index, "--vectors", vectors, "--form", "bits1+int8", "--json"))
    assert (again["added"], again["there"]) == (0, 400)
    found = json.loads(run("search", index, "--vectors", vectors, "-k", 3, "--json"))
    assert [one["ids"][0] for one in found] == [str(n) for n in range(400)]
    own = json.loads(run("report", index, "--json"))
    assert own["recall"] > 0.8
    assert own["low"] <= own["recall"] <= own["high"]
    judged = json.loads(run("report", index, "--queries", vectors, "--against", vectors, "--json"))
    assert judged["queries"] == 400
    run("remove", index, "7", "8")
    assert "398 documents" in run("report", index)
    assert json.loads(run("search", index, "--vectors", vectors, "-k", 3, "--json"))[7]["ids"][0] != "7"


def test_a_flat_index_reports_recall_of_one(tmp_path, vectors):
    run("build", tmp_path / "index", "--vectors", vectors, "--form", "flat")
    assert json.loads(run("report", tmp_path / "index", "--json"))["recall"] == 1.0


def test_texts_are_encoded_and_found(tmp_path, encoder):
    (tmp_path / "news.jsonl").write_text(
        "".join(
            json.dumps({"id": f"n{n}", "text": text}) + "\n"
            for n, text in enumerate(["storm harbour", "oil price", "match goal"])
        )
    )
    index = tmp_path / "index"
    run("build", index, "--texts", tmp_path / "news.jsonl", "--encoder", encoder, "--form", "flat", "--length", 8)
    said = json.loads(run("search", index, "--text", "oil price", "--text", "storm harbour", "-k", 2, "--json"))
    assert [one["ids"][0] for one in said] == ["n1", "n0"]
    assert said[0]["scores"][0] == pytest.approx(1.0, abs=1e-5)
    assert "n2" in run("search", index, "--text", "goal match")
    with pytest.raises(DataError, match="query 'rain rain.* has 9 tokens and the encoder reads 8"):
        run("search", index, "--text", "rain " * 9)
    with pytest.raises(DataError, match="query ' ' is empty"):
        run("search", index, "--text", " ")
    with pytest.raises(ConfigError, match="vectors do not mix"):
        run("build", index, "--texts", tmp_path / "news.jsonl", "--encoder", encoder, "--length", 9)
    (tmp_path / "gap.txt").write_text("storm\n\nrain\n")
    with pytest.raises(DataError, match="line 2 is an empty document"):
        run("build", tmp_path / "other", "--texts", tmp_path / "gap.txt", "--encoder", encoder)
    (tmp_path / "twice.jsonl").write_text('{"id": "a", "text": "rain"}\n{"id": "a", "text": "bank"}\n')
    with pytest.raises(DataError, match="'a' stands twice"):
        run("build", tmp_path / "other2", "--texts", tmp_path / "twice.jsonl", "--encoder", encoder)


def test_a_new_encoder_searches_the_old_index_through_an_adapter(tmp_path, encoder):
    from transformers import BertModel

    torch.manual_seed(1)
    model = BertModel.from_pretrained(encoder)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.02 * torch.randn_like(one))
    model.save_pretrained(tmp_path / "new")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "new" / name).write_bytes((encoder / name).read_bytes())
    words = ["storm", "harbour", "price", "oil", "match", "goal", "rain", "bank"]
    drawn = np.random.default_rng(0).choice(words, (60, 4))
    (tmp_path / "texts.txt").write_text("".join(" ".join(row) + "\n" for row in drawn))
    index, out = tmp_path / "index", tmp_path / "a.safetensors"
    run("build", index, "--texts", tmp_path / "texts.txt", "--encoder", encoder, "--form", "flat", "--length", 8)
    said = json.loads(
        run("adapt", index, "--encoder", tmp_path / "new", "--texts", tmp_path / "texts.txt", "--out", out, "--json")
    )
    assert said["cosine"] > said["cosine_before"]
    query = " ".join(drawn[7])
    with pytest.raises(ConfigError, match="do not mix"):
        run("search", index, "--text", query, "--encoder", tmp_path / "new")
    found = json.loads(
        run("search", index, "--text", query, "--encoder", tmp_path / "new", "--adapter", out, "-k", 3, "--json")
    )
    assert "8" in found[0]["ids"]
    with pytest.raises(ConfigError, match="leads from another encoder"):
        run("search", index, "--text", query, "--adapter", out)
    (tmp_path / "few.txt").write_text("storm\nrain\n")
    with pytest.raises(DataError, match="holds 2 texts"):
        run("adapt", index, "--encoder", encoder, "--texts", tmp_path / "few.txt", "--out", out)


def test_pictures_are_encoded_and_found(tmp_path):
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")
    (tmp_path / "p" / "deep").mkdir(parents=True)
    for n, name in enumerate(("a.png", "b.png", "deep/c.png")):
        pixels = np.random.default_rng(n).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "p" / name)
    run("build", tmp_path / "index", "--pictures", tmp_path / "p", "--encoder", tmp_path / "vit", "--form", "flat")
    said = json.loads(run("search", tmp_path / "index", "--picture", tmp_path / "p" / "deep" / "c.png", "--json"))
    assert said[0]["ids"][0] == "deep/c.png"
    (tmp_path / "p" / "d.png").write_bytes(b"torn")
    with pytest.raises(DataError, match="d.png is not a picture"):
        run("build", tmp_path / "index", "--pictures", tmp_path / "p", "--encoder", tmp_path / "vit", "--form", "flat")


def test_what_goes_wrong_is_one_line(tmp_path, vectors):
    with pytest.raises(ConfigError, match="give one of --vectors"):
        run("build", tmp_path / "i", "--vectors", vectors, "--texts", vectors)
    with pytest.raises(ConfigError, match="--metric 'l2' is not accepted"):
        run("build", tmp_path / "i", "--vectors", vectors, "--metric", "l2")
    with pytest.raises(ConfigError, match="is not understood"):
        run("build", tmp_path / "i", "--vectors", vectors, "--form", "int3")
    with pytest.raises(ArtifactError, match="is no index"):
        run("search", tmp_path, "--vectors", vectors)
    bad = ROWS.copy()
    bad[5] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    with pytest.raises(NonFiniteError, match="row 5"):
        run("build", tmp_path / "i", "--vectors", tmp_path / "bad.npy")
    assert not (tmp_path / "i").exists()
    run("build", tmp_path / "i", "--vectors", vectors)
    with pytest.raises(ConfigError, match="knows no encoder; give queries as --vectors"):
        run("search", tmp_path / "i", "--text", "storm")
    with pytest.raises(ConfigError, match="belong together"):
        run("report", tmp_path / "i", "--queries", vectors)


@pytest.mark.parametrize("form", ["flat", "pq:groups=4"])
def test_a_faiss_file_finds_what_the_index_finds(tmp_path, vectors, form):
    faiss = pytest.importorskip("faiss", reason="extra retrieval is not installed")
    index = tmp_path / "index"
    run("build", index, "--vectors", vectors, "--form", form)
    run("remove", index, "3")
    run("export", index, "--out", tmp_path / "x.faiss")
    read = faiss.read_index(str(tmp_path / "x.faiss"))
    assert (tmp_path / "x.faiss.ids").read_text().split() == [str(n) for n in range(400) if n != 3]
    scores, numbers = read.search(ROWS[:20], 5)
    found = json.loads(run("search", index, "--vectors", vectors, "-k", 5, "--json"))[:20]
    np.testing.assert_allclose(scores, [one["scores"] for one in found], atol=1e-5)
    same = np.mean([[str(n) for n in row] == one["ids"] for row, one in zip(numbers, found, strict=True)])
    assert same > 0.9  # product codes give equal scores to equal codes


def test_what_faiss_cannot_hold_is_said(tmp_path, vectors):
    pytest.importorskip("faiss", reason="extra retrieval is not installed")
    run("build", tmp_path / "index", "--vectors", vectors, "--form", "bits4")
    with pytest.raises(ConfigError, match="no index that holds rotated-vectors"):
        run("export", tmp_path / "index", "--out", tmp_path / "x.faiss")
    run("build", tmp_path / "short", "--vectors", vectors, "--form", "truncate:kept=8")
    with pytest.raises(ConfigError, match="no place for the reduction"):
        run("export", tmp_path / "short", "--out", tmp_path / "x.faiss")
