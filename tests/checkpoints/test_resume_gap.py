from __future__ import annotations

import pytest

from checkpoint_runs import make_run, resume
from lessen.checkpoints import Archive, PackSettings, find_snapshots, pack
from lessen.checkpoints.resume_gap import prove
from lessen.errors import ConfigError, DataError


def test_an_exact_archive_resumes_with_no_gap_at_all(run, tmp_path):
    pack(find_snapshots(run), tmp_path / "a", PackSettings(mode="exact"))
    proof = prove(Archive(tmp_path / "a"), 24, resume, steps=12, seeds=2)
    assert proof.gap == 0
    assert proof.bump == 0
    assert proof.noise > 0
    assert proof.inside


def test_a_near_archive_resumes_inside_the_noise(run, tmp_path):
    pack(find_snapshots(run), tmp_path / "a", PackSettings())
    proof = prove(Archive(tmp_path / "a"), 40, resume, steps=30, seeds=4)
    assert 0 < abs(proof.gap) <= proof.noise
    assert abs(proof.bump) < 0.05
    assert proof.as_json()["inside_noise"] is True
    assert "inside" in str(proof)


def test_a_broken_resume_is_outside_the_noise(run, tmp_path):
    pack(find_snapshots(run), tmp_path / "a", PackSettings())

    def broken(checkpoint, steps, seed):
        outcome = resume(checkpoint, steps, seed)
        return {"losses": outcome["losses"], "final": outcome["final"] + (checkpoint not in run)}

    proof = prove(Archive(tmp_path / "a"), 40, broken, steps=3, seeds=2)
    assert proof.gap == pytest.approx(1, abs=0.1)
    assert not proof.inside
    assert "OUTSIDE" in str(proof)


def test_the_original_must_be_there_and_be_what_was_packed(tmp_path):
    paths = make_run(tmp_path / "run", checkpoints=2)
    pack(find_snapshots(paths), tmp_path / "a", PackSettings(mode="exact"))
    moved = paths[0].rename(tmp_path / "elsewhere.pt")
    with pytest.raises(DataError, match="--original"):
        prove(Archive(tmp_path / "a"), 8, resume, steps=1, seeds=2)
    assert prove(Archive(tmp_path / "a"), 8, resume, original=moved, steps=1, seeds=2).gap == 0
    with pytest.raises(DataError, match="not the checkpoint that was packed"):
        prove(Archive(tmp_path / "a"), 8, resume, original=paths[1], steps=1, seeds=2)


def test_settings_and_functions_that_cannot_work_are_refused(run, tmp_path):
    pack(find_snapshots(run[:1]), tmp_path / "a", PackSettings(mode="exact"))
    with pytest.raises(ConfigError, match="at least 2 seeds"):
        prove(Archive(tmp_path / "a"), 8, resume, seeds=1)
    with pytest.raises(ConfigError, match="must return"):
        prove(Archive(tmp_path / "a"), 8, lambda *_: {"loss": 1})


def test_an_error_of_the_users_own_function_reads_as_theirs(run, tmp_path):
    pack(find_snapshots(run[:1]), tmp_path / "a", PackSettings(mode="exact"))

    def mistaken(checkpoint, steps, seed):
        return {"losses": [{"loss": 1.0}["los"]]}

    with pytest.raises(
        ConfigError, match=r"training function raised KeyError: 'los' \(line \d+ of .*test_resume_gap\.py\)"
    ):
        prove(Archive(tmp_path / "a"), 8, mistaken, steps=1, seeds=2)
    with pytest.raises(ConfigError, match="no numbers"):
        prove(Archive(tmp_path / "a"), 8, lambda *_: {"losses": ["low"]}, steps=1, seeds=2)
