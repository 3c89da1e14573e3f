"""Files of tensors: the bytes that safetensors writes, sizes by arithmetic, shards, and what no file can hold."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from torch import nn

from lessen import files
from lessen.artifact import folder as artifact
from lessen.artifact.tensors import (
    WIDEST_FIRST,
    Filed,
    Hashing,
    Held,
    digest_of,
    file_bytes,
    raw,
    same_bits,
    shards,
    state_of,
    write,
)
from lessen.errors import ArtifactError

NAMES = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00"), min_size=1, max_size=6)
SHAPES = st.lists(st.integers(0, 4), max_size=3)


def written(tensors, path):
    with files.atomic_stream(path) as handle:
        out = Hashing(handle)
        write(out, tensors)
    return path.read_bytes(), out


@given(st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(list(WIDEST_FIRST))), max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_file_is_the_one_that_safetensors_writes(tmp_path_factory, forms):
    tensors = {}
    for name, (shape, dtype) in forms.items():
        count = int(torch.Size(shape).numel()) * dtype.itemsize
        values = torch.randint(0, 2, (count,), dtype=torch.uint8)  # 0 and 1 are values of every type
        tensors[name] = values.view(dtype).view(shape) if count else torch.zeros(shape, dtype=dtype)
    path = tmp_path_factory.mktemp("file") / "a.safetensors"
    found, out = written(tensors, path)
    assert found == save(tensors)
    assert (out.bytes, out.found.hexdigest()) == (file_bytes(tensors), files.digest(found))
    filed = Filed([path])
    assert filed.forms == Held(tensors).forms
    assert all(raw(tensor) == raw(tensors[name]) for name, tensor in filed)


def test_strided_and_shared_tensors_are_written_as_their_values(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tensors = {"turned": base.t(), "column": base[:, 1], "all": base}
    found, _ = written(tensors, tmp_path / "a")
    assert found == save({name: tensor.contiguous() for name, tensor in tensors.items()})


def test_shards_hold_every_tensor_once_and_no_more_than_asked(tmp_path):
    tensors = {f"t{number}": torch.full((number + 1, 10), float(number)) for number in range(9)}
    groups = shards(tensors, 400)
    assert [name for group in groups for name in group] == list(tensors)
    assert all(sum(t.nbytes for t in group.values()) <= 400 for group in groups)
    assert [list(group) for group in shards(tensors, 1)] == [[name] for name in tensors]
    assert shards({}, 5) == [{}]


def test_a_sharded_artifact_loads_and_every_shard_is_checked(tmp_path):
    model, base = (
        nn.Sequential(*[nn.Linear(20, 20) for _ in range(6)]),
        nn.Sequential(*[nn.Linear(20, 20) for _ in range(6)]),
    )
    size = artifact.save(tmp_path / "a", model, base, shard_bytes=4000, probe=torch.ones(2, 20))
    names = sorted(item.name for item in (tmp_path / "a").glob("*.safetensors"))
    assert names == [f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)] + [artifact.PROBE]
    assert size == sum((tmp_path / "a" / name).stat().st_size for name in [*names[:3], artifact.STRUCTURE])
    assert sum(len(load_file(tmp_path / "a" / name)) for name in names[:3]) == 12
    assert artifact.verify(tmp_path / "a", model=base).probe == "equal"
    second = tmp_path / "a" / names[1]
    damaged = bytearray(second.read_bytes())
    damaged[-1] ^= 1
    second.write_bytes(damaged)
    with pytest.raises(ArtifactError, match="00002-of-00003.*changed or damaged"):
        artifact.load(tmp_path / "a", model=base)
    second.unlink()
    with pytest.raises(ArtifactError, match="00002-of-00003.*missing"):
        artifact.load(tmp_path / "a", model=base)


class Odd(nn.Module):
    def __init__(self, tensor):
        super().__init__()
        self.register_buffer("odd", tensor)


class Noted(nn.Module):
    def get_extra_state(self):
        return {"epoch": 3}

    def set_extra_state(self, state):
        pass


class Own(torch.Tensor):
    pass


def quantised():
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "match"),
    [
        (lambda: Odd(torch.eye(3).to_sparse()), "'0.odd' cannot be stored: it is sparse_coo; call .to_dense"),
        (lambda: Odd(torch.eye(3).to_sparse_csr()), "sparse_csr"),
        (lambda: Odd(quantised()), "quantised tensors"),
        (lambda: Odd(torch.empty(3, device="meta")), "'meta'"),
        (lambda: Odd(torch.ones(3).as_subclass(Own)), "a Own"),
        (lambda: Odd(torch.ones(3, dtype=torch.complex128)), "complex128"),
        (lambda: nn.LazyLinear(3), "call the model once"),
        (lambda: Noted(), "a dict, not a tensor"),
    ],
)
def test_what_no_file_can_hold_is_refused_by_name_and_nothing_is_written(tmp_path, model, match):
    model = nn.Sequential(model())
    with pytest.raises(ArtifactError, match=match) as caught:
        artifact.save(tmp_path / "a", model, model)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_bits_are_compared_not_values():
    nan = torch.tensor([float("nan"), 0.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert not same_bits(torch.zeros(2, 1), torch.zeros(1, 2))
    assert same_bits(torch.arange(6).view(2, 3).t(), torch.arange(6).view(2, 3).t().contiguous())


def test_a_digest_tells_names_shapes_types_and_values_apart():
    states = [
        {"a": torch.zeros(2, 3)},
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3).int()},
        {"a": torch.ones(2, 3)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(0)},
        {},
    ]
    assert len({digest_of(state) for state in states}) == len(states)
    assert digest_of(state_of(nn.Linear(2, 2))) != digest_of(state_of(nn.Linear(2, 2)))


@pytest.mark.slow
def test_writing_and_loading_take_a_shard_above_the_model(tmp_path):
    command = [sys.executable, "-m", "benchmarks.artifact.memory", "--layers", "12", "--out", str(tmp_path / "m.json")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
