from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lessen.artifact import folder as artifact
from lessen.decoding.kv_stored import PrefixStates
from lessen.decoding.prefix import prefix_of_model
from lessen.errors import ArtifactError, InputError, NothingMatchedError, TaskError
from lessen.method import Context
from lessen.methods.weights._shared.prefix_training import TrainedPrefix, layer_errors, train_prefix
from lessen.methods.weights.intactkv import IntactKV
from lessen.methods.weights.kivi import KIVI
from lessen.methods.weights.rtn import RTN
from lessen.recipe import Recipe
from lessen.testing.sentences import SentenceTask
from lessen.testing.toys import TableTask

pytest.importorskip("transformers")
TASK = SentenceTask()
RTN3 = RTN(bits=3, min_weights=64, group=32)


@pytest.fixture(scope="module")
def model():
    return TASK.reference()


@pytest.fixture(scope="module")
def patched(model):
    return Recipe([RTN3, IntactKV()]).apply(model, TASK, seed=0)


@torch.no_grad()
def logits(model):
    return TASK.forward(model, TASK.example_batch())


def test_the_states_are_those_of_the_model_before_the_first_step(model, patched):
    made, ledger = patched
    held = made._modules["prefix_states"].prefix
    for mine, exact in zip(held.layers, prefix_of_model(model, TASK.opening).layers, strict=True):
        assert torch.equal(mine[0], exact[0])
        assert torch.equal(mine[1], exact[1])
    assert torch.equal(logits(made)[:, :2], held.logits.expand(4, 2, 40))
    assert ledger[1].findings["tokens"] == 2
    assert ledger[1].findings["bytes"] == {"keys and values": 2 * 2 * 2 * 2 * 8 * 4, "logits": 2 * 40 * 4}


def test_without_quantisation_logits_are_the_same(model):
    made, _ = Recipe([IntactKV()]).apply(model, TASK, seed=0)
    assert torch.allclose(logits(made), logits(model), atol=1e-4)


def test_a_quantised_model_hears_the_prefix(model, patched):
    plain, _ = Recipe([RTN3]).apply(model, TASK, seed=0)
    assert float((logits(patched[0]) - logits(plain))[:, 3:].abs().max()) > 1e-3


def test_training_lowers_the_error_of_layers_and_no_step_is_the_prefix_itself(model):
    student, _ = Recipe([RTN3]).apply(model, TASK, seed=0)
    flags = [p.requires_grad for p in student.parameters()]
    plug_in = TrainedPrefix(prefix_of_model(model, TASK.opening))
    for mine, exact in zip(plug_in.prefix().layers, prefix_of_model(model, TASK.opening).layers, strict=True):
        assert torch.equal(mine[0], exact[0])
    knobs = IntactKV(steps=30, accumulate=2, learning_rate=3e-3)
    found = train_prefix(plug_in, student, model, TASK, Context(seed=0), knobs)
    assert found["after"] < 0.995 * found["before"]
    assert [p.requires_grad for p in student.parameters()] == flags
    made, ledger = Recipe([RTN3, knobs]).apply(model, TASK, seed=0)
    assert ledger[1].train_seconds > 0
    assert not torch.equal(made._modules["prefix_states"].keys_0, prefix_of_model(model, TASK.opening).layers[0][0])


def test_the_loss_is_half_the_mean_square_summed_over_layers_at_judged_positions(model):
    """Against an ordinary forward: the student is the model itself with a changed last layer, the prefix its own."""
    student = copy.deepcopy(model)
    with torch.no_grad():
        student.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    inputs, labels = next(iter(TASK.batches("train")))
    sides = [(each, list(each.model.layers)) for each in (student, model)]
    found = layer_errors(prefix_of_model(student, TASK.opening), *sides, inputs, labels)
    seen = []
    for each in (student, model):
        handle = each.model.layers[1].register_forward_hook(lambda _m, _i, output: seen.append(output))
        each(**inputs)
        handle.remove()
    wanted = 0.5 * (seen[0] - seen[1])[labels != -100].square().mean()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)


def test_an_artifact_holds_the_prefix_under_its_own_role(model, patched, tmp_path):
    made = Recipe([RTN3, IntactKV(), KIVI(bits=2, group=4, residual=4)]).apply(model, TASK, seed=0)[0]
    inputs = TASK.inputs(TASK.example_batch())
    stored = artifact.save(tmp_path / "a", made, TASK.build(), probe=inputs)
    entry = json.loads((tmp_path / "a" / "manifest.json").read_text())["files"]["prefix.safetensors"]
    assert (entry["role"], entry["counted"]) == ("prefix", True)
    assert not any("prefix_states" in name for name in load_file(tmp_path / "a" / "model.safetensors"))
    assert set(load_file(tmp_path / "a" / "prefix.safetensors")) >= {"prefix_states.ids", "prefix_states.keys_1"}
    assert stored == artifact.stored_size(made, TASK.build())
    loaded = artifact.load(tmp_path / "a", TASK.build())
    assert torch.equal(logits(loaded), logits(made))
    assert artifact.verify(tmp_path / "a", TASK.build()).probe == "equal"
    (tmp_path / "a" / "prefix.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"prefix\.safetensors"):
        artifact.load(tmp_path / "a", TASK.build())


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [("ids", torch.tensor([3, 999]), "999"), ("keys_0", torch.full((2, 2, 8), float("nan")), "NaN")],
)
def test_a_prefix_that_was_tampered_with_is_refused(model, patched, tmp_path, name, value, match):
    made = patched[0]
    artifact.save(tmp_path / "a", made, TASK.build())
    path = tmp_path / "a" / "prefix.safetensors"
    save_file(load_file(path) | {f"prefix_states.{name}": value}, path)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    from lessen.files import sha256

    manifest["files"][path.name] |= {"sha256": sha256(path), "bytes": path.stat().st_size}
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=match):
        artifact.load(tmp_path / "a", TASK.build())


def test_what_cannot_be_kept_is_refused_in_one_line(model, patched):
    compact, _ = Recipe([RTN3]).apply(model, TASK, seed=0)
    cases = [
        (InputError, "is compact already", lambda: Recipe([IntactKV()]).apply(compact, TASK)),
        (NothingMatchedError, "from an earlier step", lambda: Recipe([IntactKV(), IntactKV()]).apply(model, TASK)),
        (TaskError, "prefix=bos", lambda: Recipe([IntactKV()]).apply(model, TASK.view(opening=()))),
        (NothingMatchedError, "TableNet is no", lambda: Recipe([IntactKV()]).apply(TableTask().build(), TableTask())),
        (NothingMatchedError, "an earlier step", lambda: Recipe([KIVI(), KIVI()]).apply(model, TASK)),
    ]
    for error, match, call in cases:
        with pytest.raises(error, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_judge_that_reads_whole_texts_is_said_to_see_nothing(model):
    _, ledger = Recipe([KIVI()]).apply(model, TASK.view(options=None))
    assert "piece" in ledger[0].findings["warning"]
    _, ledger = Recipe([KIVI()]).apply(model, TASK)
    assert "warning" not in ledger[0].findings


def test_the_stored_prefix_keeps_its_type(model):
    half = copy.deepcopy(model).bfloat16()
    states = PrefixStates.of(prefix_of_model(half, TASK.opening))
    assert {states.keys_0.dtype, states.logits.dtype} == {torch.bfloat16}
    states.check()
