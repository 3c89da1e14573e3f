"""An artifact whose cache is patched is generated from, and refuses texts that start otherwise, in one line."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

from typer.testing import CliRunner

from lessen.artifact import folder as artifact
from lessen.cli import app
from lessen.methods.weights.intactkv import IntactKV
from lessen.methods.weights.kivi import KIVI
from lessen.methods.weights.rtn import RTN
from lessen.recipe import Recipe
from lessen.tasks import get_task
from tiny_models import llama


@pytest.fixture(scope="module")
def small(tmp_path_factory, tokenizer):
    home = tmp_path_factory.mktemp("patched")
    llama().save_pretrained(home / "tiny")
    tokenizer.save_pretrained(home / "tiny")
    (home / "words.txt").write_text("\n".join("abcdefghij"[n % 7 :] * 4 for n in range(40)))
    options = {"prefix": "xyz", "piece": 8, "window": 32, "stride": 16, "prefill": 8, "unit": "line", "documents": 2}
    task = get_task({"name": "language", "model": str(home / "tiny"), "text": str(home / "words.txt"), **options})
    recipe = Recipe([RTN(bits=4, min_weights=64, group=32), IntactKV(), KIVI(bits=4, group=4, residual=4)])
    made, _ = recipe.apply(task.reference(), task, seed=0)
    artifact.save(home / "small", made, task.build(), task=task.describe())
    return home / "small"


def run(*words):
    return CliRunner().invoke(app, [*map(str, words)], catch_exceptions=True)


def test_generate_decodes_behind_the_prefix(small):
    words = ("generate", small, "--completion", "--no-pack", "--max-new-tokens", "6", "--json", "-p")
    done = run(*words, "xyzabcabc")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["outputs"][0]["new_tokens"] >= 1
    other = run(*words, "abcabc")
    assert other.exit_code != 0
    assert "starts with the tokens" in (other.output + str(other.exception))


@pytest.mark.parametrize("to", ["gguf", "hf", "onnx"])
def test_export_says_why_not(small, tmp_path, to):
    done = run("export", small, "--to", to, "--out", tmp_path / "out")
    assert done.exit_code != 0
    assert "changes how the model runs" in (done.output + str(done.exception))
    assert not (tmp_path / "out").exists()
