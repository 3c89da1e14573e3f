"""The study of table methods runs by the engine of `lessen run`; a part of it never takes the place of the whole."""

import json
import sys

import pytest

script = pytest.importorskip("benchmarks.embeddings.study", reason="benchmarks are not part of this installation")

STUDY = """
study: tiny-tables
task: {name: ctr-synthetic, rows: 400, rows_per_field: 300, fields: 2}
seeds: [0, 1]
measure: {rounds: 8, peak_memory: false, baselines: false}
recipes:
  - {name: int8, steps: [{emb-rowwise-quant: {bits: 8, min_rows: 5}}]}
  - {name: half, steps: [emb-half]}
  - {name: none, steps: [{emb-rowwise-quant: {share: 0.001, min_rows: 5}}]}
"""


def test_a_part_of_the_study_is_written_beside_the_runs_and_the_whole_among_the_results(tmp_path, monkeypatch):
    results, out = tmp_path / "results", tmp_path / "out"
    results.mkdir()
    monkeypatch.setattr(script, "RESULTS", results)
    (tmp_path / "study.yaml").write_text(STUDY)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["study", str(tmp_path / "study.yaml"), str(out), *arguments])
        script.main()

    call("--only", "int8")
    assert not list(results.iterdir())
    assert [row["recipe"] for row in json.loads((out / "tiny_tables.json").read_text())["rows"]] == ["int8"]
    call()
    rows = {row["recipe"]: row for row in json.loads((results / "tiny_tables.json").read_text())["rows"]}
    assert set(rows) == {"int8", "half", "none"}
    assert "nearest it can reach" in rows["none"]["refused"]
    assert len(rows["half"]["per_seed"]) == 2
    assert (results / "tiny_tables.md").read_text().count("|") > 10
