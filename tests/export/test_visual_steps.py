"""Every step on visual tokens leaves `lessen export` as a file, or with one line that says why there is none."""

from __future__ import annotations

import pytest

from lessen import cli
from lessen.artifact.folder import save
from lessen.methods import builtin_methods
from lessen.recipe import Recipe
from lessen.tasks.multimodal.grid import GridOptions, GridTask

pytest.importorskip("transformers")
pytest.importorskip("gguf")
pytest.importorskip("onnxruntime")

METHODS = builtin_methods()
STEPS = ["deco", *(name for name, one in METHODS.items() if "visual tokens" in one.card.acts_on)]
WHY = {
    "visual-pruning": "visual tokens are left out between its layers",
    "picture-pooling": "pictures are averaged before its projector",
    "sight": "pictures become other tokens in front of its decoder",
}


@pytest.fixture(scope="module")
def small():
    task = GridTask(GridOptions(about="films", questions=10, batch=3, timing_batch=2))
    return task, task.build().eval()


def test_the_steps_are_all_there():
    assert {"adem-vl", "deco", "fastv", "feather", "free-video-llm", "hires-llava", "slime"} <= set(STEPS)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_no_format_says_is_refused_for_its_own_reason(name, small, tmp_path, capsys):
    task, base = small
    if name == "adem-vl":  # one picture a prompt
        task = GridTask(GridOptions(about="stills", questions=10, batch=3, timing_batch=2))
    model, _ = Recipe([METHODS[name]()]).apply(base, task)
    save(tmp_path / "small", model, base, task=task.describe())
    for to in ("onnx", "hf", "gguf"):
        out = tmp_path / f"out.{to}"
        assert cli.execute(["export", str(tmp_path / "small"), "--to", to, "--out", str(out)]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert any(why in told for why in WHY.values()), told
        assert "tokenizer" not in told
        assert not out.exists()


def test_a_model_that_sees_and_is_not_compressed_is_told_for_what_it_is(small, tmp_path, capsys):
    _, base = small
    base.save_pretrained(tmp_path / "host")
    capsys.readouterr()  # of the library
    out = tmp_path / "out.gguf"
    assert cli.execute(["export", str(tmp_path / "host"), "--to", "gguf", "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert "of type llava cannot be written as GGUF" in told
    assert told.count("\n") == 1
    assert cli.execute(["export", str(tmp_path / "host"), "--to", "hf", "--out", str(tmp_path / "plain")]) == 0
