"""Deltas: what equals the base is named and not stored; without the base, or with another, they are one line."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen import files
from lessen.artifact import folder as artifact
from lessen.artifact.delta import base_of, collapsed, expanded
from lessen.errors import ArtifactError
from lessen.stored.base import STORED, StoredModule
from lessen.stored.linears.low_rank import empty_linear
from toy import ToyNet

IDS = torch.randint(0, 64, (9, 2), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def base():
    torch.manual_seed(4)
    return ToyNet().eval()


def clone(model):
    again = ToyNet().eval()
    again.load_state_dict(model.state_dict())
    return again


def stored(path):
    return sum((path / name).stat().st_size for name in (artifact.WEIGHTS, artifact.STRUCTURE))


def test_a_model_that_changed_nothing_stores_bytes_that_say_so(base, tmp_path):
    whole = artifact.stored_size(base, base)
    size = artifact.save(tmp_path / "a", clone(base), base, reference=base_of(base), probe=IDS)
    assert size == stored(tmp_path / "a") == artifact.stored_size(clone(base), base, reference=base_of(base))
    assert (tmp_path / "a" / artifact.WEIGHTS).stat().st_size == 16
    assert json.loads((tmp_path / "a" / artifact.STRUCTURE).read_text())["same"] == ["*"]
    found = artifact.verify(tmp_path / "a", model=base)
    assert (found.probe, found.stored_bytes) == ("equal", size)
    assert found.serving_bytes == size + sum(tensor.nbytes for tensor in base.state_dict().values()) < size + whole
    assert found.serving_bytes == artifact.sizes(clone(base), base, reference=base_of(base)).serving_bytes


def test_one_changed_tensor_is_stored_alone(base, tmp_path):
    model = clone(base)
    model.out.bias.data += 1
    artifact.save(tmp_path / "a", model, base, reference=base_of(base))
    again = artifact.load(tmp_path / "a", model=base)
    assert torch.equal(again(IDS), model(IDS))
    assert not torch.equal(again(IDS), base(IDS))
    content = json.loads((tmp_path / "a" / artifact.STRUCTURE).read_text())
    assert content["same"] == ["hidden.*", "left.*", "out.weight", "right.*"]
    assert (tmp_path / "a" / artifact.WEIGHTS).stat().st_size < 120


def test_the_base_given_is_never_changed_and_shares_nothing(base, tmp_path):
    before = clone(base)
    artifact.save(tmp_path / "a", clone(base), base, reference=base_of(base))
    again = artifact.load(tmp_path / "a", model=base)
    again.out.weight.data.zero_()
    assert all(torch.equal(before.state_dict()[name], tensor) for name, tensor in base.state_dict().items())


class Adapter(StoredModule):
    """y = base(x) + up(down(x)): what an adapter room would register."""

    kind = "test-adapter"

    def __init__(self, features_in, features_out, rank):
        super().__init__()
        self.base = empty_linear(features_in, features_out)
        self.down, self.up = empty_linear(features_in, rank, bias=False), empty_linear(rank, features_out, bias=False)

    def config(self):
        return {
            "features_in": self.base.in_features,
            "features_out": self.base.out_features,
            "rank": self.down.out_features,
        }

    def forward(self, inputs):
        return self.base(inputs) + self.up(self.down(inputs))


def test_an_adapter_stores_its_own_tensors_only(base, tmp_path, monkeypatch):
    monkeypatch.setitem(STORED, Adapter.kind, Adapter)
    model, layer = clone(base), Adapter(16, 16, 2)
    layer.base.load_state_dict(base.hidden.state_dict())
    torch.nn.init.normal_(layer.down.weight)
    torch.nn.init.normal_(layer.up.weight)
    model.hidden = layer
    artifact.save(tmp_path / "a", model, base, reference=base_of(base), probe=IDS)
    assert set(artifact.Filed([tmp_path / "a" / artifact.WEIGHTS]).forms) == {"hidden.down.weight", "hidden.up.weight"}
    content = json.loads((tmp_path / "a" / artifact.STRUCTURE).read_text())
    assert content["moved"] == {"hidden.base.bias": "hidden.bias", "hidden.base.weight": "hidden.weight"}
    assert artifact.verify(tmp_path / "a", model=base).probe == "equal"


def test_a_token_reduction_is_a_patch_beside_the_modules(tmp_path):
    from lessen.tasks.vision.vit import PlainViT, ViTOptions
    from lessen.tokens.reducers import Merge
    from lessen.tokens.stored import TokenReduction

    options = ViTOptions(image_size=8, patch_size=4, width=8, depth=2, heads=2, classes=3, stem=())
    torch.manual_seed(0)
    base, model = PlainViT(options).eval(), PlainViT(options).eval()
    model.load_state_dict(base.state_dict())
    TokenReduction(Merge(removed=(1, 1))).attach(model)
    size = artifact.save(tmp_path / "a", model, base, reference=base_of(base), probe=torch.randn(2, 3, 8, 8))
    content = json.loads((tmp_path / "a" / artifact.STRUCTURE).read_text())
    assert (content["modules"], content["same"]) == ([], ["*"])
    assert [record["kind"] for record in content["patches"]] == ["token-reduction"]
    assert size < 1000
    assert artifact.verify(tmp_path / "a", model=base).probe == "equal"
    assert artifact.stored_size(model, base) > 5 * size


def test_the_reference_of_a_task_that_comes_with_its_weights_needs_no_model(tmp_path):
    from lessen.tasks import get_task

    task = get_task("image-cifar10")
    base = task.reference()
    probe = torch.randn(2, 3, 32, 32)
    size = artifact.save(tmp_path / "a", base, base, task=task.describe(), reference=base_of(base, "task"), probe=probe)
    assert size < 1500
    assert artifact.verify(tmp_path / "a").probe == "equal"


def test_without_its_base_or_with_another_it_is_one_line(base, tmp_path):
    artifact.save(tmp_path / "own", base, base, reference=base_of(base))
    artifact.save(tmp_path / "hub", base, base, reference=base_of(base, "folder", "org/model", "abc123"))
    task = {"name": "ctr-synthetic", "rows": 300}
    artifact.save(tmp_path / "task", base, base, task=task, reference=base_of(base, "task"))
    digest = base_of(base).digest[:12]
    for name, match in (
        ("own", "that it was made from"),
        ("hub", "org/model at revision abc123"),
        ("task", "its task"),
    ):
        with pytest.raises(ArtifactError, match=f"without its base: it needs .*{match}.*{digest}") as caught:
            artifact.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    other = clone(base)
    other.out.bias.data += 1e-7
    with pytest.raises(ArtifactError, match=f"another base than the model given.*{digest}"):
        artifact.load(tmp_path / "own", model=other)
    with pytest.raises(ArtifactError, match="another base"):
        artifact.load(tmp_path / "own", model=ToyNet(rows=32))
    with pytest.raises(ArtifactError, match="needs its name"):
        base_of(base, "folder")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"same": ["nothing.*"]}, "no tensor 'nothing"),
        ({"same": ["left.weight", "left.*"]}, "missing"),
        ({"moved": {"left.weight": "nowhere"}}, "no tensor 'nowhere'"),
        ({"base": None}, "need a base"),
        ({"moved": {"left.weight": "out.bias"}}, "has shape"),
        ({"moved": {"new": "out.bias"}}, "no place"),
        ({"weights": "whole"}, "need a base"),
        ({"moved": {"left.weight": "left.weight"}}, None),
        ({"tied": {"left.weight": "right.weight"}}, "stored too"),
        ({"base": {"kind": "url", "digest": ""}}, "base.kind"),
    ],
)
def test_crafted_deltas_are_one_line(base, tmp_path, change, match):
    artifact.save(tmp_path / "a", base, base, reference=base_of(base))
    path = tmp_path / "a" / artifact.STRUCTURE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    manifest = json.loads((tmp_path / "a" / artifact.MANIFEST).read_text())
    manifest["files"][artifact.STRUCTURE] = {"sha256": files.sha256(path), "bytes": path.stat().st_size}
    (tmp_path / "a" / artifact.MANIFEST).write_text(json.dumps(manifest))
    if match is None:
        assert torch.equal(artifact.load(tmp_path / "a", model=base)(IDS), base(IDS))
        return
    with pytest.raises(ArtifactError, match=match) as caught:
        artifact.load(tmp_path / "a", model=base)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_is_stored_and_borrowed_is_refused(base, tmp_path):
    model = clone(base)
    model.out.bias.data += 1
    artifact.save(tmp_path / "a", model, base, reference=base_of(base))
    path = tmp_path / "a" / artifact.STRUCTURE
    path.write_text(json.dumps({**json.loads(path.read_text()), "same": ["*"]}))
    manifest = json.loads((tmp_path / "a" / artifact.MANIFEST).read_text())
    manifest["files"][artifact.STRUCTURE] = {"sha256": files.sha256(path), "bytes": path.stat().st_size}
    (tmp_path / "a" / artifact.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="'out.bias' is stored and taken from the base too"):
        artifact.load(tmp_path / "a", model=base)


def test_tied_tensors_of_the_base_stay_tied(tmp_path):
    base, model = ToyNet(), ToyNet()
    base.right.weight = base.left.weight
    model.right.weight = model.left.weight
    model.load_state_dict(base.state_dict())
    artifact.save(tmp_path / "same", model, base, reference=base_of(base))
    again = artifact.load(tmp_path / "same", model=base)
    assert again.left.weight is again.right.weight
    model.left.weight.data[0] = 5.0
    artifact.save(tmp_path / "other", model, base, reference=base_of(base))
    again = artifact.load(tmp_path / "other", model=base)
    assert again.left.weight is again.right.weight
    assert torch.equal(again.left.weight, model.left.weight)
    assert (tmp_path / "other" / artifact.WEIGHTS).stat().st_size < 64 * 8 * 4 + 200


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join)


@given(st.sets(NAMES, max_size=12), st.data())
@settings(max_examples=200, deadline=None)
def test_patterns_mean_the_names_that_they_were_made_of(names, data):
    # a name that is also a module's path cannot be: a module has no attribute of both kinds
    names = {name for name in names if not any(other.startswith(f"{name}.") for other in names)}
    chosen = data.draw(st.sets(st.sampled_from(sorted(names)))) if names else set()
    patterns = collapsed(chosen, names)
    assert set(expanded(patterns, names)) == chosen
    assert len(patterns) <= len(chosen)
    if chosen and chosen == names:
        assert patterns == ["*"]


def test_files_by_role_are_kept_checked_and_counted_where_serving_needs_them(base, tmp_path):
    (tmp_path / "big").write_bytes(b"index" * 100_000)
    given_files = {
        "passages.faiss": artifact.GivenFile("index", tmp_path / "big"),
        "prompt.txt": artifact.GivenFile("prompt", b"Answer in one word.", counted=False),
    }
    size = artifact.save(tmp_path / "a", base, base, given=given_files)
    assert size == stored(tmp_path / "a") + 500_000 == artifact.verify(tmp_path / "a", model=base).stored_bytes
    assert artifact.given_file(tmp_path / "a", "prompt.txt").read_bytes() == b"Answer in one word."
    manifest = json.loads((tmp_path / "a" / artifact.MANIFEST).read_text())["files"]
    assert (manifest["passages.faiss"]["role"], manifest["passages.faiss"]["counted"]) == ("index", True)
    with pytest.raises(ArtifactError, match="no file 'nothing'"):
        artifact.given_file(tmp_path / "a", "nothing")
    artifact.attach(tmp_path / "a", {"card.md": "# card"})
    (tmp_path / "a" / "passages.faiss").write_bytes(b"index" * 99_999 + b"other")
    for verb in (artifact.load, lambda path, model: artifact.given_file(path, "passages.faiss")):
        with pytest.raises(ArtifactError, match=r"passages\.faiss was changed"):
            verb(tmp_path / "a", model=base)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("../out", "index"),
        ("a/b", "index"),
        ("", "index"),
        (".hidden", "rows"),
        ("model.safetensors", "adapter"),
        ("manifest.json", "index"),
        ("card.md", "prompt"),
        ("model-00002-of-00003.safetensors", "rows"),
        ("x.bin", "weights"),
        ("x.bin", "surprise"),
    ],
)
def test_names_and_roles_that_a_file_cannot_have(base, tmp_path, name, role):
    with pytest.raises(ArtifactError, match="role|cannot name"):
        artifact.save(tmp_path / "a", base, base, given={name: artifact.GivenFile(role, b"x")})
    assert not (tmp_path / "a").exists()
