"""Archives made to harm end in a named error or in what they say, and ask for no memory before."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lessen.checkpoints import Archive, NearSettings, Packer, PackSettings, find_snapshots, pack
from lessen.checkpoints.states import load_state
from lessen.errors import ArtifactError, LessenError

EXACT, NEAR = PackSettings(mode="exact"), PackSettings()


def forge(folder: Path, change) -> None:
    """Change the footer of the last frame and sign everything anew, as someone who means harm would."""
    import hashlib

    from lessen.checkpoints import coder, frames
    from lessen.checkpoints import index as index_module

    index = index_module.read_index(folder)
    path = folder / index.entries[-1].file
    data = path.read_bytes()
    packed_size, raw_size, *_ = frames._TAIL.unpack(data[-frames._TAIL.size :])
    body = data[: -frames._TAIL.size - packed_size]
    footer = json.loads(coder.decompress(data[len(body) : len(body) + packed_size], raw_size))
    raw = json.dumps(change(footer)).encode()
    packed = coder.compress(raw)
    digest = hashlib.sha256(packed)
    path.write_bytes(body + packed + frames._TAIL.pack(len(packed), len(raw), digest.digest(), frames.MAGIC))
    index.entries[-1] = replace(index.entries[-1], digest=digest.hexdigest())
    index_module.write_index(folder, index)


WEIRD = [None, -1, 0, 1 << 62, "x", "../../x", [], {}, [[]], 1.5, True, "F64"]


def mutated(document, choose: random.Random, weird=WEIRD):
    """Change one value at a random depth of a JSON document."""
    node, key = document, choose.choice(sorted(document))
    while isinstance(node[key], (list, dict)) and node[key] and choose.random() < 0.8:
        node = node[key]
        key = choose.choice(sorted(node)) if isinstance(node, dict) else choose.randrange(len(node))
    node[key] = choose.choice(weird)
    return document


@pytest.mark.parametrize("mode", ["near", "exact"])
def test_forged_footers_end_in_a_named_error_or_in_what_they_say(archives, tmp_path, mode):
    choose = random.Random(0)
    for number in range(40):
        folder = tmp_path / "a"
        shutil.copytree(archives[mode], folder)
        forge(folder, lambda footer: mutated(footer, choose))
        try:
            archive = Archive(folder)
            archive.verify()
            archive.unpack(40, tmp_path / f"o{number}")
        except LessenError:
            assert not (tmp_path / f"o{number}").exists()
        shutil.rmtree(folder)
    assert not (tmp_path.parent / "x").exists()


def test_forged_indexes_end_in_a_named_error_or_in_what_they_say(archives, tmp_path):
    from lessen.checkpoints import index as index_module

    choose = random.Random(1)
    refused = 0
    for number in range(60):
        folder = tmp_path / "a"
        shutil.copytree(archives["exact"], folder)
        document = json.loads((folder / "index.json").read_text())
        body = mutated(document["archive"], choose)
        (folder / "index.json").write_text(
            json.dumps({**document, "archive": body, "sha256": index_module._digest(body)})
        )
        try:
            archive = Archive(folder)
            archive.verify()
            archive.unpack(archive.steps[-1], tmp_path / f"o{number}")
            with Packer(folder):
                pass
        except (LessenError, IndexError) as error:
            refused += isinstance(error, LessenError)
            assert isinstance(error, LessenError) or not archive.steps
        shutil.rmtree(folder)
    assert refused > 15


@pytest.mark.parametrize("shape", [[1 << 42], [1 << 40, 1], [1, 1 << 42], [1 << 21, 1 << 20]])
def test_an_array_of_more_pieces_than_there_are_is_refused_before_memory_is_asked_for(archives, tmp_path, shape):
    folder = shutil.copytree(archives["exact"], tmp_path / "a")

    def change(footer):
        path, _, container, arrays = footer["images"][0]
        footer["images"][0] = [path, 1 << 43, container, [[arrays[0][0], "U8", shape, 0]]]
        footer["groups"] = [[False, {"other": [0, 0]}]]
        footer["pieces"], footer["sums"] = [[[0, 8, 1 << 61, 0]]], [[0]]
        return footer

    forge(folder, change)
    with pytest.raises(ArtifactError, match="malformed footer"):
        Archive(folder).unpack(40, tmp_path / "o")


def test_a_block_that_claims_more_bytes_than_the_file_is_refused(archives, tmp_path):
    folder = shutil.copytree(archives["exact"], tmp_path / "a")

    def change(footer):
        footer["pieces"][0][0][2] = 1 << 61
        return footer

    forge(folder, change)
    with pytest.raises(ArtifactError, match="damaged"):
        Archive(folder).unpack(40, tmp_path / "o")


def test_second_moments_that_build_on_each_other_can_be_taken_out_one_by_one(run, tmp_path):
    pack(find_snapshots(run), tmp_path / "a", PackSettings(near=NearSettings(second_step=0.5), key_every=3))
    archive = Archive(tmp_path / "a")
    assert archive.verify() == []
    archive.unpack_all(tmp_path / "all")
    for step, path in zip(archive.steps, run, strict=True):
        out = archive.unpack(step, tmp_path / f"o{step}") / path.name
        assert out.read_bytes() == (tmp_path / "all" / f"step-{step}" / path.name).read_bytes()
        back, true = load_state(out)["optimizer"]["state"], load_state(path)["optimizer"]["state"]
        second, whole = back[1]["exp_avg_sq"], true[1]["exp_avg_sq"]
        assert (second - whole).norm() < 0.2 * whole.norm()


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "a\\b", "", "."])
def test_files_outside_the_checkpoint_are_refused(archives, tmp_path, path):
    folder = shutil.copytree(archives["near"], tmp_path / "a")

    def change(footer):
        footer["images"][0][0] = path
        return footer

    forge(folder, change)
    with pytest.raises(ArtifactError, match="outside|malformed"):
        Archive(folder).unpack(40, tmp_path / "deep" / "o")
    assert not (tmp_path / "x").exists()
