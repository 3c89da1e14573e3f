"""Artifacts come back bit for bit; every damaged or hostile folder is one clear line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lessen import files
from lessen.artifact import folder as artifact
from lessen.artifact.plain import PLAIN, build_plain
from lessen.errors import ArtifactError, OutputError
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding
from toy import ToyNet


@pytest.fixture
def saved(tmp_path):
    model = ToyNet().eval()
    path = tmp_path / "small"
    artifact.save(path, model, ToyNet(), probe=torch.randint(0, 64, (5, 2)))
    return path, model


def reseal(path):
    """Recompute the manifest, as an attacker would."""
    entries = {
        item.name: {"sha256": files.sha256(item), "bytes": item.stat().st_size}
        for item in path.iterdir()
        if item.name != artifact.MANIFEST
    }
    (path / artifact.MANIFEST).write_text(json.dumps({"format": 1, "files": entries}))


def edit_structure(path, change):
    content = json.loads((path / artifact.STRUCTURE).read_text())
    change(content)
    (path / artifact.STRUCTURE).write_text(json.dumps(content))
    reseal(path)


def test_round_trip_is_bit_exact_and_leaves_the_given_model_alone(saved):
    path, model = saved
    base = ToyNet()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    again = artifact.load(path, model=base)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    ids = torch.randint(0, 64, (9, 2))
    assert torch.equal(again(ids), model(ids))


def test_stored_bytes_are_bytes_of_files(tmp_path):
    size = artifact.save(tmp_path / "a", ToyNet(), ToyNet())
    assert size == sum((tmp_path / "a" / name).stat().st_size for name in (artifact.WEIGHTS, artifact.STRUCTURE))
    assert size == artifact.stored_size(ToyNet(), ToyNet())


def test_verify_runs_the_probe(saved):
    path, _ = saved
    found = artifact.verify(path, model=ToyNet())
    assert found.probe == "equal"
    tensors = load_file(path / artifact.PROBE)
    tensors["output"] += 0.5
    save_file(tensors, path / artifact.PROBE)
    reseal(path)
    with pytest.raises(ArtifactError, match="outputs differ"):
        artifact.verify(path, model=ToyNet())


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path):
    model, base = ToyNet(), ToyNet()
    model.right.weight = model.left.weight
    base.right.weight = base.left.weight
    artifact.save(tmp_path / "tied", model, base)
    assert len(load_file(tmp_path / "tied" / artifact.WEIGHTS)) == len(model.state_dict()) - 1
    again = artifact.load(tmp_path / "tied", model=base)
    assert again.left.weight.data_ptr() == again.right.weight.data_ptr()


def test_a_compact_module_in_two_places_comes_back_in_both(tmp_path):
    def build():
        model = ToyNet()
        model.right = model.left
        return model

    model = build()
    model.left = model.right = QuantizedEmbedding.from_dense(model.left, 8)
    artifact.save(tmp_path / "a", model, build())
    again = artifact.load(tmp_path / "a", model=build())
    assert again.left is again.right
    ids = torch.randint(0, 64, (9, 2))
    assert torch.equal(again(ids), model(ids))


def test_reshaped_plain_layers_are_described(tmp_path):
    model = ToyNet().eval()
    model.hidden, model.out = nn.Linear(16, 4), nn.Linear(4, 1)
    artifact.save(tmp_path / "narrow", model, ToyNet())
    ids = torch.randint(0, 64, (9, 2))
    assert torch.equal(artifact.load(tmp_path / "narrow", model=ToyNet())(ids), model(ids))


def test_a_module_that_no_file_can_describe_is_refused(tmp_path):
    model = ToyNet()
    model.hidden = nn.Bilinear(16, 16, 16)
    with pytest.raises(ArtifactError, match="hidden: a Bilinear"):
        artifact.save(tmp_path / "odd", model, ToyNet())
    assert not (tmp_path / "odd").exists()


def test_every_flipped_byte_is_noticed(saved, tmp_path):
    path, _ = saved
    generator = torch.Generator().manual_seed(0)
    for name in [item.name for item in path.iterdir()]:
        raw = (path / name).read_bytes()
        for position in torch.randint(0, len(raw), (25,), generator=generator).tolist():
            damaged = bytearray(raw)
            damaged[position] ^= 1 << (position % 8)
            (path / name).write_bytes(damaged)
            with pytest.raises(ArtifactError):
                artifact.load(path, model=ToyNet())
        (path / name).write_bytes(raw)
    artifact.load(path, model=ToyNet())


@pytest.mark.parametrize("name", [artifact.WEIGHTS, artifact.STRUCTURE, artifact.MANIFEST])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_cut_files_are_refused(saved, name, keep):
    path, _ = saved
    raw = (path / name).read_bytes()
    (path / name).write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(ArtifactError):
        artifact.load(path, model=ToyNet())
    if name != artifact.MANIFEST:
        reseal(path)  # even with right digests, a cut file says so
        with pytest.raises(ArtifactError):
            artifact.load(path, model=ToyNet())


@pytest.mark.parametrize("name", [artifact.WEIGHTS, artifact.STRUCTURE, artifact.MANIFEST])
def test_a_missing_file_is_named(saved, name):
    path, _ = saved
    (path / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        artifact.load(path, model=ToyNet())


def test_a_foreign_file_is_named(saved):
    path, _ = saved
    (path / "evil.pkl").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"evil\.pkl"):
        artifact.load(path, model=ToyNet())


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "..\\x"])
def test_paths_that_leave_the_folder_are_refused(saved, name):
    path, _ = saved
    manifest = json.loads((path / artifact.MANIFEST).read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    (path / artifact.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="not a file of an artifact"):
        artifact.load(path, model=ToyNet())


def test_a_linked_weight_file_is_refused(saved, tmp_path):
    path, _ = saved
    shutil.move(path / artifact.WEIGHTS, tmp_path / "elsewhere")
    (path / artifact.WEIGHTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="link"):
        artifact.load(path, model=ToyNet())


def record(kind, config, path="hidden"):
    return lambda content: content["modules"].append({"path": path, "kind": kind, "config": config})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (record("os.system", {}), "unknown stored class 'os.system'"),
        (record("torch.Linear", {"in_features": 2**50, "out_features": 2**40, "bias": True}), "cannot be built"),
        (record("torch.Linear", {"in_features": -1, "out_features": 3, "bias": True}), "cannot be built"),
        (record("torch.Linear", {"in_features": 8, "out_features": 16, "bias": True}), "has shape"),
        (record("torch.Linear", {"what": 8}), "cannot be built"),
        (
            record("torch.Linear", {"in_features": 16, "out_features": 16, "bias": True}, "no.where"),
            "no tensor|no module",
        ),
        (lambda content: content.update(format=99), "format 99"),
        (lambda content: content.update(surprise=1), "surprise"),
        (lambda content: content.update(modules="x"), "modules"),
        (lambda content: content["tied"].update({"left.weight": "nowhere"}), "nowhere"),
    ],
)
def test_hostile_structures_are_one_line(saved, change, match):
    path, _ = saved
    edit_structure(path, change)
    with pytest.raises(ArtifactError, match=match) as caught:
        artifact.load(path, model=ToyNet())
    assert "\n" not in str(caught.value)


def test_a_wrong_base_model_is_named(saved):
    path, _ = saved
    with pytest.raises(ArtifactError, match=r"left\.weight.*shape"):
        artifact.load(path, model=ToyNet(rows=32))
    with pytest.raises(ArtifactError, match="no place|missing"):
        artifact.load(path, model=nn.Linear(3, 3))


def test_a_model_of_your_own_needs_its_architecture(saved):
    path, _ = saved
    with pytest.raises(ArtifactError, match="pass its architecture"):
        artifact.load(path)


def test_a_pickle_is_refused_by_content(saved):
    path, _ = saved
    torch.save({"x": torch.ones(3)}, path / artifact.WEIGHTS)
    reseal(path)
    with pytest.raises(ArtifactError, match="not a valid safetensors"):
        artifact.load(path, model=ToyNet())


def test_saving_never_replaces_what_is_there(saved):
    path, model = saved
    with pytest.raises(OutputError, match="not empty"):
        artifact.save(path, model, ToyNet())


def test_attach_keeps_the_artifact_valid(saved):
    path, _ = saved
    artifact.attach(path, {"card.md": "# card"})
    artifact.load(path, model=ToyNet())
    with pytest.raises(ArtifactError, match="not a file of an artifact"):
        artifact.attach(path, {"../card.md": "x"})


PLAIN_EXAMPLES = [
    nn.Linear(3, 2, bias=False), nn.Embedding(4, 2, padding_idx=0), nn.EmbeddingBag(4, 2, mode="sum"),
    nn.Conv1d(2, 4, 3, padding="same"), nn.Conv2d(2, 4, (3, 1), stride=2, groups=2, bias=False),
    nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1), nn.BatchNorm1d(3),
    nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(2, 4), nn.LayerNorm(5),
    nn.LayerNorm((5, 2), elementwise_affine=False), nn.LayerNorm(4, bias=False), nn.RMSNorm(5, eps=1e-6),
    nn.Identity(), nn.ReLU(), nn.ReLU6(inplace=True), nn.LeakyReLU(0.2), nn.GELU(), nn.SiLU(), nn.Mish(),
    nn.Hardswish(), nn.Sigmoid(), nn.Tanh(), nn.Softmax(1), nn.Dropout(0.3), nn.AvgPool2d(2),
    nn.MaxPool2d(3, stride=2, padding=1), nn.AdaptiveAvgPool2d((1, None)), nn.Flatten(),
    nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Sequential(nn.Linear(4, 2))), nn.ModuleList([nn.Linear(2, 2)]),
]  # fmt: skip


@pytest.mark.parametrize("module", PLAIN_EXAMPLES, ids=lambda module: type(module).__name__)
def test_plain_layers_come_back_with_their_settings(module, tmp_path):
    holder, base = nn.Module(), nn.Module()
    holder.part, base.part = module, nn.Bilinear(1, 1, 1)
    artifact.save(tmp_path / "a", holder, base)
    again = artifact.load(tmp_path / "a", model=base).part
    assert repr(again) == repr(module)
    assert again.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in module.state_dict().items())


def test_every_plain_layer_has_an_example():
    assert {type(module) for module in PLAIN_EXAMPLES} == {plain.cls for plain in PLAIN.values()}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("torch.Linear", {"in_features": 2, "out_features": 2, "bias": True, "device": "meta"}),
        ("torch.Linear", {"in_features": 2, "out_features": 2, "dtype": "float64"}),
        ("torch.Embedding", {"num_embeddings": 4, "embedding_dim": 2, "padding_idx": 4}),
        ("torch.Embedding", {"num_embeddings": 4, "embedding_dim": 2, "_weight": [1]}),
        ("torch.Sequential", {"length": -1}),
        ("torch.Sequential", {"length": 10**9}),
        ("torch.Sequential", {}),
        ("torch.Conv2d", {"in_channels": 2, "out_channels": 2, "kernel_size": [3] * 9}),
        ("torch.GELU", {"approximate": {"a": 1}}),
    ],
)
def test_arguments_that_a_plain_layer_cannot_take_are_refused(kind, config):
    with pytest.raises(Exception):  # noqa: B017 - whatever torch raises: `refusing` turns all of it into one line
        build_plain(kind, config)
