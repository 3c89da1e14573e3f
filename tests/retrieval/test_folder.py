"""Index folders: what is acknowledged stays, what is removed is gone, and nothing foreign or torn gets in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from lessen import files
from lessen.errors import ArtifactError, ConfigError, DataError, NonFiniteError, OutputError
from lessen.retrieval import folder as folders
from lessen.retrieval.exact import nearest, recall, shares
from lessen.retrieval.folder import IndexFolder
from lessen.retrieval.forms import parse_form

FORMS = [
    "flat",
    "int8",
    "bits4",
    "bits1+int8",
    "pq:groups=8",
    "pca:kept=16+bits2+flat",
    "truncate:kept=16",
    "flat+flat",
]


def drawn(rows, dim=32, seed=0):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def named(rows, first=0):
    return [f"doc {number}" for number in range(first, first + rows)]


@pytest.fixture
def index(tmp_path):
    made = IndexFolder.create(tmp_path / "index", "int8", drawn(10))
    made.add(named(40), drawn(40))
    return made


@pytest.mark.parametrize("form", FORMS)
def test_an_opened_index_finds_what_it_found_before(tmp_path, form):
    vectors, queries = drawn(300), drawn(5, seed=1)
    made = IndexFolder.create(tmp_path / "index", form, vectors)
    assert made.add(named(200), vectors[:200]) == 200
    made.add(named(100, 200), vectors[200:])
    made.remove(["doc 3", "doc 250"])
    again = IndexFolder.open(tmp_path / "index")
    assert len(again) == 298
    assert again.search(queries, 10) == made.search(queries, 10)
    assert set(again.ids()) == set(named(300)) - {"doc 3", "doc 250"}
    assert again.search(vectors[3:4], 298)[0].ids.count("doc 3") == 0
    assert again.file_bytes == sum(f.stat().st_size for f in (tmp_path / "index").iterdir() if f.name != "lock")


def test_rows_are_mapped_and_their_bytes_are_exact(tmp_path):
    made = IndexFolder.create(tmp_path / "index", "bits1+int8", drawn(20))
    made.add(named(50), drawn(50))
    stored = IndexFolder.open(tmp_path / "index").modules[0]
    assert made.row_bytes == (4 + 4) + (32 + 4)
    held = sum(tensor.nbytes for name, tensor in stored.state_dict().items() if name in stored.per_row)
    assert held == 50 * made.row_bytes
    stored.check()


def test_flat_search_is_exact_search_over_many_files(tmp_path):
    vectors, queries = drawn(500), drawn(20, seed=1)
    made = IndexFolder.create(tmp_path / "index", "flat", vectors, metric="dot")
    for first in range(0, 500, 50):
        made.add(named(50, first), vectors[first : first + 50])
    _, numbers = nearest(queries, [vectors], 7)
    assert [one.ids for one in made.search(queries, 7)] == [[f"doc {n}" for n in row] for row in numbers.tolist()]
    assert len(made.manifest.segments) <= folders.SMALL_FILES + 1
    assert len(made.search(queries, 10_000)[0].ids) == 500


def test_probes_keep_exact_neighbours_through_additions_and_removals(tmp_path):
    vectors = torch.nn.functional.normalize(drawn(600), dim=1)
    made = IndexFolder.create(tmp_path / "index", "bits1", vectors)
    made.add(named(300), vectors[:300])
    made.add(named(300, 300), vectors[300:])
    made.remove(named(100, 250))
    probes = IndexFolder.open(tmp_path / "index").probes()
    kept = [n for n in range(600) if not 250 <= n < 350]
    from lessen.retrieval.ids import digests

    names = digests(named(600))
    for row in range(0, 128, 16):
        scores = probes.vectors[row] @ vectors[kept].t()
        order = [names[kept[n]] for n in scores.argsort(descending=True).tolist() if names[kept[n]] != probes.own[row]]
        assert probes.digests[row, :20].tolist() == [int(one) for one in order[:20]]


def test_files_with_many_removed_rows_are_written_again(index):
    before = index.file_bytes
    index.remove(named(30))
    assert index.manifest.segments[0].rows == 10
    assert index.file_bytes < before
    assert len(list(index.path.glob("rows-*"))) == 1
    index.remove(named(10, 30))
    assert len(index) == 0
    assert index.search(drawn(2), 3)[0].ids == []
    index.add(named(2), drawn(2))
    assert len(IndexFolder.open(index.path)) == 2


BAD = {
    "width": (named(1), torch.ones(1, 31), DataError, "of width 31; the index holds vectors of width 32"),
    "nan": (named(2), torch.tensor([[1.0] * 32, [float("nan")] * 32]), NonFiniteError, "row 1 .* holds NaN"),
    "zero": (named(2), torch.tensor([[1.0] * 32, [0.0] * 32]), DataError, "row 1 .*'doc 1'.* is a zero vector"),
    "twice": (["a", "b", "a"], torch.ones(3, 32), DataError, "'a' stands twice, at 0 and 2"),
    "there": (["x", "doc 7"], torch.ones(2, 32), DataError, "'doc 7' is in the index already"),
    "nameless": (["x", ""], torch.ones(2, 32), DataError, "document 1 has an id of 0 characters"),
    "count": (["x"], torch.ones(2, 32), DataError, "1 ids for 2 vectors"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_indexed_is_refused_whole(index, case):
    ids, vectors, kind, message = BAD[case]
    before = (index.path / "index.json").read_bytes()
    with pytest.raises(kind, match=message):
        index.add(ids, vectors)
    assert (index.path / "index.json").read_bytes() == before


def test_queries_are_checked_and_zero_vectors_have_products(tmp_path, index):
    with pytest.raises(DataError, match="queries are of width 3"):
        index.search(torch.ones(1, 3), 2)
    with pytest.raises(NonFiniteError, match="queries: row 0"):
        index.search(torch.full((1, 32), float("inf")), 2)
    with pytest.raises(ConfigError, match="k must be at least 1"):
        index.search(torch.ones(1, 32), 0)
    dots = IndexFolder.create(tmp_path / "dots", "int8", drawn(10), metric="dot")
    dots.add(["none"], torch.zeros(1, 32))
    assert dots.search(torch.ones(1, 32), 1)[0].scores == [0.0]


def test_vectors_whose_products_leave_float32_are_refused_where_products_count(tmp_path):
    dots = IndexFolder.create(tmp_path / "dots", "bits4", drawn(10), metric="dot")
    dots.add(["long"], drawn(1) * 1e16)
    assert dots.search(drawn(1), 1)[0].ids == ["long"]
    with pytest.raises(DataError, match=r"row 1 \(id 'b'\) is longer than 1e\+18 \(1 of 2 are\).*scale the vectors"):
        dots.add(["a", "b"], drawn(2) * torch.tensor([[1.0], [1e37]]))
    with pytest.raises(DataError, match="queries: row 0 is longer"):
        dots.search(drawn(1) * 1e30, 1)


def test_an_id_that_is_absent_removes_nothing(index):
    with pytest.raises(DataError, match="'doc 99' is not in the index"):
        index.remove(["doc 1", "doc 99"])
    assert len(IndexFolder.open(index.path)) == 40


def test_vectors_of_another_encoder_do_not_mix(tmp_path):
    own, other = {"name": "old", "digest": "a" * 64}, {"name": "new", "digest": "b" * 64}
    made = IndexFolder.create(tmp_path / "index", "flat", drawn(4), encoder=own)
    made.add(["a"], drawn(1), own)
    with pytest.raises(ConfigError, match=r"comes from new \(bbbb.*made of old \(aaaa"):
        made.add(["b"], drawn(1), other)
    with pytest.raises(ConfigError, match="comes from vectors of a file"):
        made.check_encoder(None, "the query")


def test_torn_probes_are_told_when_an_index_is_opened(index):
    probes = index.path / index.manifest.probes.name
    probes.write_bytes(probes.read_bytes()[:-5])
    with pytest.raises(ArtifactError, match=probes.name):
        IndexFolder.open(index.path)


@pytest.mark.parametrize("damage", ["cut", "changed", "absent", "foreign rows", "record", "no record", "removed"])
def test_a_torn_folder_is_named(index, damage):
    rows = index.path / index.manifest.segments[0].name
    record = index.path / "index.json"
    raw = bytearray(rows.read_bytes())
    if damage == "cut":
        rows.write_bytes(raw[:-5])
    elif damage == "changed":
        raw[-1] ^= 1
        rows.write_bytes(raw)
    elif damage == "absent":
        rows.unlink()
    elif damage == "record":
        record.write_text(record.read_text()[:-9])
    elif damage == "no record":
        record.unlink()
    else:
        said = json.loads(record.read_text())
        if damage == "removed":
            said["segments"][0]["removed"] = [40]
        else:  # a file that is whole, and holds something else
            rows.write_bytes((index.path / said["shared"]["name"]).read_bytes())
            raw = rows.read_bytes()
            said["segments"][0] |= {"bytes": len(raw), "sha256": files.digest(raw)}
        record.write_text(json.dumps(said))
    with pytest.raises(ArtifactError, match="rows-1|index.json"):
        IndexFolder.open(index.path)


def test_one_writer_at_a_time_and_a_reader_sees_what_another_wrote(index):
    other = IndexFolder.open(index.path)
    with other._writing(), pytest.raises(OutputError, match="another process is writing"):
        index.add(["x"], drawn(1))
    other.add(["x"], drawn(1, seed=5))
    index.add(["y"], drawn(1, seed=6))
    assert len(index) == 42
    assert index.has(["x", "y", "z"]) == [True, True, False]


WRITER = """
import sys, torch
from pathlib import Path
from lessen.retrieval.folder import IndexFolder
index = IndexFolder.open(Path(sys.argv[1]))
generator = torch.Generator().manual_seed(0)
for number in range(10_000):
    index.add([f"{number} {n}" for n in range(5)], torch.randn(5, 32, generator=generator))
    print(number, flush=True)
"""


def test_an_index_killed_while_adding_loses_nothing_acknowledged(tmp_path):
    made = IndexFolder.create(tmp_path / "index", "bits1+int8", drawn(10))
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(made.path)], stdout=subprocess.PIPE, text=True)
    said = [process.stdout.readline() for _ in range(12)]
    time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[0].splitlines(keepends=True)
    acknowledged = int([one for one in (*said, *rest) if one.endswith("\n")][-1]) + 1
    again = IndexFolder.open(made.path)
    assert acknowledged * 5 <= len(again) <= (acknowledged + 1) * 5
    assert all(again.has([f"{number} {n}" for number in range(acknowledged) for n in range(5)]))
    again.add(["next"], drawn(1))
    assert {path.name for path in made.path.iterdir()} == again.manifest.named | {"lock"}


class Full(files.FileLayer):
    """A disk that fills up at the n-th sync."""

    def __init__(self, left: int) -> None:
        self.left = left

    def sync(self, handle) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, os.strerror(28))
        super().sync(handle)


@pytest.mark.parametrize("left", range(4))
def test_a_full_disk_leaves_the_index_as_it_was(index, monkeypatch, left):
    found = index.search(drawn(3), 5)
    monkeypatch.setattr(files, "FILES", Full(left))
    try:
        index.add(named(5, 100), drawn(5, seed=3))
        held = 45
    except OutputError:
        held = 40
    monkeypatch.undo()
    again = IndexFolder.open(index.path)
    assert len(again) == held == (45 if left == 3 else 40)
    if held == 40:
        assert again.search(drawn(3), 5) == found


@pytest.mark.parametrize(
    "text", ["int9", "pq", "pq:groups=0", "int8+pq", "int8+flat+flat", "pca:kept=0", "flat:kept=2", ""]
)
def test_a_form_that_is_not_understood_shows_the_grammar(text):
    with pytest.raises(ConfigError, match="is not understood: .truncate"):
        parse_form(text)


def test_a_form_that_does_not_fit_the_width_is_refused_before_anything_is_written(tmp_path):
    for form, message in (("pq:groups=5", "equal groups"), ("pca:kept=64", "more than the 32")):
        with pytest.raises(ConfigError, match=message):
            IndexFolder.create(tmp_path / "index", form, drawn(10))
    assert not (tmp_path / "index").exists()


def test_recall_has_an_interval_over_queries():
    truth = torch.arange(10).expand(40, 10)
    found = truth.clone()
    found[:10, 5:] = -1
    said = recall(shares(found, truth), 10)
    assert said["recall"] == 0.875
    assert 0.7 < said["low"] < 0.85 < 0.9 < said["high"] <= 1.0


@pytest.mark.parametrize("form", ["flat", "flat+int8", "pca:kept=16+flat", "pq:groups=8", "pq:groups=8+flat"])
def test_faiss_finds_what_torch_finds(tmp_path, monkeypatch, form):
    pytest.importorskip("faiss", reason="extra retrieval is not installed")
    from lessen.retrieval import scan

    made = IndexFolder.create(tmp_path / "index", form, drawn(300))
    made.add(named(300), drawn(300))
    queries, found = drawn(7, seed=3), []
    for gone in ([], ["doc 5", "doc 9"]):
        if gone:
            made.remove(gone)
        for smallest in (1, 10_000):
            monkeypatch.setattr(scan, "SMALLEST", smallest)
            found.append([one.scores for one in IndexFolder.open(made.path).search(queries, 6)])
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.tensor(found[2]), torch.tensor(found[3]), atol=1e-4, rtol=1e-4)
