"""What a study wrote vouches for itself: an edited record, a changed or missing outcome is refused and made again."""

from __future__ import annotations

import json
import random

import pytest

from lessen import files
from lessen.errors import DataError
from lessen.frontier import Frontier
from lessen.frontier.evidence import fault_of
from lessen.frontier.seal import sealed
from lessen.study import Study, run
from study_tools import TEXT, settled, write


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("evidence")
    study = Study.load(write(root / "study.yaml", TEXT))
    run(study, root / "out")
    return study, root / "out"


def test_records_are_sealed_and_name_their_evidence(done):
    out = done[1]
    records = [json.loads(line) for line in (out / "measurements.jsonl").read_text().splitlines()]
    assert all(fault_of(record, out) == "" for record in records)
    for record in records:
        own, reference = f"outcomes/{record['recipe']}-{record['seed']}", f"outcomes/reference-{record['seed']}"
        expected = {f"{own}.safetensors", f"{reference}.safetensors", "outcomes/units.safetensors"}
        assert set(record["evidence"]) == expected
    assert sealed(records[0])["digest"] == records[0]["digest"] != sealed({**records[0], "seed": 7})["digest"]


def damaged(out, file, change):
    path = out / file
    before = path.read_bytes()
    path.write_bytes(change(before))
    return lambda: path.write_bytes(before)


def test_any_flip_in_the_evidence_is_found(done):
    out = done[1]
    generator = random.Random(0)
    names = sorted(path.relative_to(out).as_posix() for path in (out / "outcomes").rglob("*.safetensors"))
    for _ in range(60):
        name = generator.choice(names)
        at, bit = generator.randrange((out / name).stat().st_size), 1 << generator.randrange(8)
        restore = damaged(out, name, lambda raw, at=at, bit=bit: raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :])
        with pytest.raises(DataError, match="was changed after it was written"):
            Frontier.load(out)
        restore()
    Frontier.load(out)


def test_edited_settings_are_told(done):
    out = done[1]
    assert not any("study.yaml" in note for note in Frontier.load(out).studies[0].notes)
    restore = damaged(out, "study.yaml", lambda raw: raw + b"# edited\n")
    assert any("study.yaml was changed after the study was run" in note for note in Frontier.load(out).studies[0].notes)
    restore()


def test_an_edited_figure_is_refused_and_made_again(done):
    study, out = done
    before = settled(out)
    for name in ("measurements.jsonl", "runs/int8-0.json"):
        restore = damaged(out, name, lambda raw: raw.replace(b'"auc": 0.', b'"auc": 0.96', 1))
        if name == "measurements.jsonl":
            with pytest.raises(DataError, match="recipe 'int8', seed 0: the record was changed after it was written"):
                Frontier.load(out)
            restore()
    assert run(study, out, resume=True).left == 0
    assert settled(out) == before
    Frontier.load(out)


def test_a_figure_that_its_outcomes_do_not_give_is_refused_even_with_a_fitting_digest(done):
    out = done[1]
    path = out / "measurements.jsonl"
    before = path.read_text()
    first, *others = before.splitlines()
    record = json.loads(first)
    record["quality"]["auc"] = 0.96
    path.write_text("\n".join([files.canonical(sealed(record)).decode(), *others]) + "\n")
    with pytest.raises(DataError, match=r"auc of 'int8', seed 0, is recorded as 0.96, but its outcomes give 0\.\d+"):
        Frontier.load(out)
    path.write_text(before)


def test_missing_outcomes_are_made_again_and_never_passed_over(done):
    study, out = done
    before = settled(out)
    (out / "outcomes" / "hash-1.safetensors").unlink()
    with pytest.raises(DataError, match="'hash', seed 1: outcomes/hash-1.safetensors is missing"):
        Frontier.load(out)
    run(study, out, resume=True)
    assert (out / "outcomes" / "hash-1.safetensors").is_file()
    assert settled(out) == before


def test_a_study_published_without_its_outcomes_is_still_read(done, tmp_path):
    out = done[1]
    for name in ("measurements.jsonl", "study.yaml"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    assert len(Frontier.load(tmp_path).points) == 2


def test_a_record_without_its_digest_and_a_damaged_noise_floor_are_refused_and_made_again(done):
    study, out = done
    record = json.loads((out / "measurements.jsonl").read_text().splitlines()[0])
    assert fault_of({key: value for key, value in record.items() if key != "digest"}, out) != ""
    restore = damaged(out, "noise.json", lambda raw: raw.replace(b'"auc"', b'"auk"', 1))
    with pytest.raises(DataError, match=r"noise.json was changed after it was written"):
        Frontier.load(out)
    run(study, out, resume=True)
    Frontier.load(out)
    restore()
