from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lessen.data.cache import cache_folder
from lessen.data.catalogue import DATASETS
from lessen.data.collection import known_items, read_cranfield, read_lee
from lessen.data.text import deal, documents
from lessen.errors import DataError

TEXT = """ = First = \n\n one\n two \n\n = = Part = = \n three\n = Second = \n four\n"""


@pytest.mark.parametrize(
    ("unit", "found"),
    [
        ("line", ["= First =", "one", "two", "= = Part = =", "three", "= Second =", "four"]),
        ("paragraph", ["= First =", "one\n two", "= = Part = = \n three\n = Second = \n four"]),
        ("article", ["= First = \n\n one\n two \n\n = = Part = = \n three", "= Second = \n four"]),
        ("file", [TEXT.strip()]),
    ],
)
def test_a_file_is_cut_as_it_says(tmp_path, unit, found):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert documents(str(path), unit) == found


def test_a_folder_gives_its_files_and_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    assert documents(str(tmp_path)) == ["one", "two"]
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"c.txt is not UTF-8 text: byte 3 is 0xe9"):
        documents(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no text"):
        documents(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="no text at"):
        documents(str(tmp_path / "none"))


def test_splits_are_dealt_by_position():
    found = [str(n) for n in range(10)]
    assert [deal(found, split) for split in ("test", "validation", "train")] == [
        ["0", "5"],
        ["1", "6"],
        ["2", "3", "4", "7", "8", "9"],
    ]


def test_first_sentences_look_for_what_follows():
    made = known_items(["One is here. Two follows. And three.", "Only one.", "Is it? It is."])
    assert made.queries == ["One is here.", "Is it?"]
    assert made.documents == ["Two follows. And three.", "It is."]
    assert made.grades == [{0: 1}, {1: 1}]
    with pytest.raises(DataError, match="1 of 2 documents have two sentences"):
        known_items(["One. Two.", "One"])


CRANFIELD = {
    "cran.all.1400.xml": "<doc>\n<docno>1</docno><title>a</title><text>a wing\n & more</text></doc><doc><docno>7</docno><text>b</text></doc>",
    "cran.qry.xml": "<xml><top><num> 4</num><title>\nwings ?\n</title></top><top><num>9</num><title>none</title></top></xml>",
    "cranqrel.trec.txt": "1 0 7 2\n1 0 1 0\n\n2 0 7 0\n",
}


def cranfield(folder, **changes):
    for name, text in (CRANFIELD | changes).items():
        (folder / name).write_text(text)
    return folder


def test_cranfield_is_read_and_queries_without_an_answer_are_left_out(tmp_path):
    found = read_cranfield(cranfield(tmp_path))
    assert (found.documents, found.queries, found.grades) == (["a wing & more", "b"], ["wings ?"], [{1: 2}])


@pytest.mark.parametrize("line", ["1 0 8 1", "3 0 7 1", "1 0 7", "1 0 7 x"])
def test_a_wrong_judgement_is_named_with_its_line(tmp_path, line):
    with pytest.raises(DataError, match=r"cranqrel.trec.txt, line 2: .* is no judgement"):
        read_cranfield(cranfield(tmp_path, **{"cranqrel.trec.txt": f"1 0 7 1\n{line}\n"}))


def test_an_absent_or_foreign_file_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no cran.all.1400.xml"):
        read_cranfield(tmp_path)
    with pytest.raises(DataError, match="holds no <top>"):
        read_cranfield(cranfield(tmp_path, **{"cran.qry.xml": "<a/>"}))
    with pytest.raises(DataError, match="a <doc> lacks <docno> or <text>"):
        read_cranfield(cranfield(tmp_path, **{"cran.all.1400.xml": "<doc><docno>1</docno></doc>"}))


def test_the_whole_of_cranfield():
    folder = Path(os.environ.get("LESSEN_DATA", "../shared/data")) / "cranfield"
    if not folder.is_dir():
        pytest.skip("no Cranfield here; set LESSEN_DATA to the folder that holds it")
    found = read_cranfield(folder)
    assert (len(found.documents), len(found.queries), sum(map(len, found.grades))) == (1400, 225, 1612)
    assert "aeroelastic models" in found.queries[0]
    assert found.documents[183].startswith("scale models for thermo-aeroelastic")


def test_news_and_ratings_come_from_the_package():
    if not (cache_folder() / "packages" / DATASETS["lee-news"].filename).is_file():
        pytest.skip("the news are not in the cache; run: lessen data get lee-news")
    assert len(documents("news")) == 300
    items, ratings = read_lee()
    assert (len(items), ratings.shape) == (50, (50, 50))
    assert np.array_equal(ratings, ratings.T)
    assert ratings.diagonal().tolist() == [1.0] * 50
