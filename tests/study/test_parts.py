"""A study in parts: each kind of model is judged in its own way, all stand in one page, resumed and reported from files."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from lessen import cli
from lessen.artifact.layout import Structure
from lessen.errors import ConfigError
from lessen.frontier import Frontier
from lessen.study import Study
from lessen.study.parts import Parts, load

TEXT = """
study: two kinds
seeds: [0]
measure: {rounds: 8, peak_memory: false, baselines: false}
parts:
  - study: codec
    task: {name: pictures, pictures: 30, side: 32}
    margin: {psnr: 3.0}
    cost: bits_per_pixel
    recipes:
      - {name: coarse, curve: JPEG, steps: [{jpeg: {quality: 20}}]}
      - {name: fine, curve: JPEG, steps: [{jpeg: {quality: 85}}]}
  - study: adapter
    task: {name: shapes, examples: 640, style: faded, pretrained: filled}
    margin: {accuracy: 0.02}
    recipes:
      - {name: LoRA, steps: [{lora: {rank: 2, epochs: 3}}]}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    (root / "study.yaml").write_text(TEXT)
    assert cli.execute(["run", str(root / "study.yaml"), "--out", str(root / "out"), "--jobs", "1"]) == 0
    return root / "study.yaml", root / "out"


def test_every_part_keeps_its_metric_unit_and_cost(done):
    _, out = done
    with (out / "frontier.csv").open() as file:
        rows = {row["recipe"]: row for row in csv.DictReader(file)}
    assert (rows["fine"]["metric"], rows["fine"]["cost"]) == ("PSNR", "bits per pixel")
    assert (rows["LoRA"]["metric"], rows["LoRA"]["cost"]) == ("accuracy", "stored bytes")
    assert float(rows["fine"]["loss in margins"]) < float(rows["coarse"]["loss in margins"])
    page = (out / "frontier.html").read_text()
    for said in ("two kinds", "PSNR", "bits per pixel", "accuracy", "coarse", "LoRA"):
        assert said in page
    assert "http" not in re.sub(r"<meta[^>]*>", "", page)
    assert (out / "codec" / "frontier.html").is_file()


def test_the_rates_of_a_codec_are_one_curve_and_cost_bits(done):
    points = {point.label: point for point in Frontier.load(done[1] / "codec").points}
    assert {point.curve for point in points.values()} == {"JPEG"}
    assert points["coarse"].share["bits_per_pixel"].mean < points["fine"].share["bits_per_pixel"].mean < 1


def test_an_adapter_is_stored_as_a_delta_and_judged_from_what_lies_on_disk(done):
    out = done[1] / "adapter"
    structure = Structure.model_validate_json((out / "artifacts" / "LoRA-0" / "structure.json").read_bytes())
    assert structure.weights == "delta"
    record = json.loads((out / "measurements.jsonl").read_text())
    assert record["cost"]["stored_bytes"] < 0.2 * record["reference"]["cost"]["stored_bytes"]


def test_reported_again_from_the_files_alone_and_resumed(done, capsys, tmp_path):
    study, out = done
    assert cli.execute(["report", str(out), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "frontier.csv").read_bytes() == (out / "frontier.csv").read_bytes()
    command = ["run", str(study), "--out", str(out), "--jobs", "1"]
    capsys.readouterr()
    assert cli.execute(command) == 2
    assert "add --resume" in capsys.readouterr().err
    (out / "adapter" / "runs" / "LoRA-0.json").unlink()
    assert cli.execute([*command, "--resume"]) == 0
    assert (out / "adapter" / "runs" / "LoRA-0.json").is_file()


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("seeds: [0]", "seads: [0]", "did you mean 'seeds'"),
        ("study: adapter", "study: Codec", "two parts are called 'codec'"),
        ("task: {name: pictures", "task: {name: picturez", r"part 1: task: .*did you mean 'pictures'"),
        ("{jpeg: {quality: 20}}", "{jpeg: {quality: 200}}", "part 1: recipe 1"),
    ],
)
def test_mistakes_are_one_line_and_found_before_anything_runs(tmp_path, old, new, match):
    (tmp_path / "study.yaml").write_text(TEXT.replace(old, new))
    with pytest.raises(ConfigError, match=match) as caught:
        load(tmp_path / "study.yaml")
    assert "\n" not in str(caught.value)


def test_the_committed_proof_is_a_study_in_six_parts():
    path = Path(__file__).parents[2] / "studies" / "one-frontier.yaml"
    if not path.is_file():
        pytest.skip("studies are not part of this installation")
    parts = load(path)
    assert isinstance(parts, Parts)
    assert len(parts.studies) == 6
    families = {step.card.family for study in parts.studies for recipe in study.recipes for step in recipe.steps}
    assert {"weights", "codecs", "retrieval", "adapt", "data"} <= families
    assert all(isinstance(study, Study) for study in parts.studies)
    assert [judge.name for judge in parts.studies[-1].judges] == ["corrupted"]


def test_parts_are_run_in_pieces_too(tmp_path, capsys):
    (tmp_path / "study.yaml").write_text(TEXT)
    command = ["run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), "--jobs", "1"]
    assert cli.execute([*command, "--only", "nothing like it"]) == 2
    assert "matches no recipe of study 'two kinds'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.execute([*command, "--only", "coarse"]) == 0
    assert "2 of 3 runs are left" in capsys.readouterr().out
    done = {path.name for path in (tmp_path / "out").rglob("runs/*.json")}
    assert done == {"coarse-0.json"}
    assert not (tmp_path / "out" / "adapter").exists()
