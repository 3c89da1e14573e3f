from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("zstandard", reason="the [checkpoints] extra is not installed")
pytest.importorskip("constriction", reason="the [checkpoints] extra is not installed")

from checkpoint_runs import make_run
from lessen.checkpoints import Archive
from lessen.cli.checkpoint import app
from lessen.errors import ArtifactError, ConfigError, DataError, GateFailed, LessenError

PROVING = Path(__file__).parents[1] / "helpers" / "proving.py"


def call(*arguments: object) -> str:
    """Run one command; errors come out as they are, for the command line to turn into a line and a status."""
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> list[Path]:
    """Five checkpoints of one small run with Adam."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def packed(run, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LESSEN_PROGRESS", "0")
    said = json.loads(call("pack", run[0].parent, "--out", tmp_path / "a", "--mode", "exact", "--json"))
    assert [step["step"] for step in said["packed"]] == [8, 16, 24, 32, 40]
    assert said["raw_bytes"] == sum(path.stat().st_size for path in run)
    assert said["bytes"] == sum(path.stat().st_size for path in (tmp_path / "a").glob("*.frame"))
    return tmp_path / "a"


def test_pack_ls_unpack_verify(packed, run, tmp_path):
    assert "packed 0 checkpoints (5 were there)" in call("pack", *run, "--out", packed)
    listed = json.loads(call("ls", packed, "--json"))
    assert listed["settings"]["mode"] == "exact"
    assert [step["step"] for step in listed["steps"]] == [8, 16, 24, 32, 40]
    assert "40" in call("ls", packed)
    call("unpack", packed, "--step", 16, "--out", tmp_path / "o")
    assert (tmp_path / "o" / "step-16.pt").read_bytes() == run[1].read_bytes()
    assert "step-40.pt" in call("unpack", packed, "--out", tmp_path / "last")
    files = json.loads(call("unpack", packed, "--all", "--out", tmp_path / "all", "--json"))["files"]
    assert [Path(name).read_bytes() for name in sorted(files)] == [path.read_bytes() for path in sorted(run)]
    assert "all 5 steps are whole" in call("verify", packed)


def test_verify_names_the_damage(packed):
    frame = packed / "step-000000024.frame"
    data = bytearray(frame.read_bytes())
    data[len(data) // 3] ^= 4
    frame.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"tensor '.*' of step 24"):
        call("verify", packed)


def test_prune(packed):
    assert "kept 3 of 5 steps" in call("prune", packed, "--keep-last", 1, "--keep-every", 16)
    assert Archive(packed).steps == [16, 32, 40]
    said = call("prune", packed, "--keep", 40)
    assert "kept 1 of 3 steps, freed 0 B; 4 more frames" in said
    assert "stay, as kept steps build on them" in said
    assert Archive(packed).steps == [40]
    with pytest.raises(LessenError, match="every step"):
        call("prune", packed)


def test_prune_before_a_step(packed):
    call("prune", packed, "--keep-before", 24)
    assert Archive(packed).steps == [8, 16]


def test_late_and_rewritten_steps_do_not_end_in_success(packed, run, tmp_path):
    late = tmp_path / "step-30.pt"
    state = torch.load(run[3], weights_only=True)
    torch.save({**state, "step": 30}, late)
    with pytest.raises(DataError, match="comes before its last step"):
        call("pack", late, "--out", packed)
    torch.save({**state, "note": "other"}, late)
    with pytest.raises(DataError, match="was written again"):
        call("pack", late, "--out", packed)


def test_classes_of_the_user_are_accepted_by_name_only(tmp_path, monkeypatch):
    monkeypatch.setenv("LESSEN_PROGRESS", "0")
    torch.save({"step": 1, "w": torch.ones(40), "config": GateFailed("mine")}, tmp_path / "s-1.pt")
    arguments = ("pack", tmp_path / "s-1.pt", "--out", tmp_path / "a", "--mode", "exact")
    with pytest.raises(ArtifactError, match=r"GateFailed.*--allow lessen\.errors\.GateFailed"):
        call(*arguments)
    call(*arguments, "--allow", "lessen.errors.GateFailed")
    call("unpack", tmp_path / "a", "--out", tmp_path / "o")
    assert (tmp_path / "o" / "s-1.pt").read_bytes() == (tmp_path / "s-1.pt").read_bytes()


def test_near_settings_on_the_command_line(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LESSEN_PROGRESS", "0")
    call("pack", *run[:2], "--out", tmp_path / "n", "--near", "rule=element", "--near", "alpha=1e-5", "--key-every", 3)
    settings = Archive(tmp_path / "n").index.settings
    assert settings["near"]["rule"] == "element"
    assert settings["near"]["alpha"] == 1e-5
    assert settings["key_every"] == 3
    for wrong, reason in [
        (["--near", "bits=12"], "bits"),
        (["--mode", "best"], "mode"),
        (["--near", "nope=1"], "nope"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            call("pack", *run[:2], "--out", tmp_path / "x", *wrong)
        assert not (tmp_path / "x").exists()


def test_prove(packed, run, tmp_path):
    train = f"{PROVING}:resume"
    said = json.loads(call("prove", packed, "--step", 24, "--train", train, "--steps", 4, "--seeds", 2, "--json"))
    assert said["gap"] == 0
    assert said["inside_noise"] is True
    assert "inside" in call("prove", packed, "--train", train, "--steps", 2, "--seeds", 2)
    with pytest.raises(GateFailed, match="more than a change of seed"):
        call("prove", packed, "--train", f"{PROVING}:broken", "--steps", 2, "--seeds", 2)
    for wrong in ["nowhere.py:resume", f"{PROVING}:absent", "resume", "no_module:f"]:
        with pytest.raises(ConfigError, match="does not name a function"):
            call("prove", packed, "--train", wrong)


def test_an_empty_archive_says_so(run, tmp_path):
    from lessen.checkpoints import Packer

    with Packer(tmp_path / "a"):
        pass
    with pytest.raises(ArtifactError, match="is empty"):
        call("unpack", tmp_path / "a", "--out", tmp_path / "o")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ArtifactError, match="no checkpoint archive"):
        call("ls", tmp_path / "a")
