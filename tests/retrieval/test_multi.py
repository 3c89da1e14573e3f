"""An index of token sets: exact search is exact, candidates are rescored, nothing acknowledged is lost, torn is named."""

from __future__ import annotations

import multiprocessing
import random
import shutil

import pytest
import torch
import torch.nn.functional as F

from lessen.errors import ArtifactError, ConfigError, DataError, LessenError, NonFiniteError, OutputError
from lessen.retrieval.folder import IndexFolder
from lessen.retrieval.multi import MultiFolder
from lessen.retrieval.muvera import Encoding

DIM = 16


def drawn(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (count,), generator=generator).tolist()
    return [F.normalize(torch.randn(one, DIM, generator=generator), dim=1) for one in lengths]


def made(path, sets, tokens="float32", form="bits1"):
    index = MultiFolder.create(path, form, sets[:64], Encoding(DIM, 8, 3, 8), tokens, {"digest": "a", "name": "e"})
    index.add([f"d{n}" for n in range(len(sets))], sets, {"digest": "a", "name": "e"})
    return index


def truth(query, sets, k):
    scores = torch.stack([(query @ one.t()).amax(1).sum() for one in sets])
    order = scores.sort(descending=True, stable=True)
    return [f"d{n}" for n in order.indices[:k].tolist()], order.values[:k]


@pytest.mark.parametrize("tokens", ["float32", "float16", "int8"])
def test_exact_search_is_maxsim_over_what_is_held_and_candidates_are_rescored(tmp_path, tokens):
    sets, queries = drawn(150), drawn(5, 1)
    index = made(tmp_path / "i", sets, tokens)
    held = MultiFolder.open(tmp_path / "i")
    for query, exact, all_of in zip(queries, held.exact(queries, 10), held.search(queries, 10, 150), strict=True):
        names, scores = truth(query, sets, 10)
        if tokens == "float32":
            assert exact.ids == names
            torch.testing.assert_close(torch.tensor(exact.scores), scores, atol=1e-5, rtol=1e-5)
        assert all_of.ids == exact.ids  # every document a candidate: the same order by the same tokens
        assert len(set(exact.ids) & set(names)) >= 9
    few = held.search(queries, 3, 20)
    assert all(len(one.ids) == 3 for one in few)
    assert index.token_bytes == pytest.approx(
        {"float32": 64, "float16": 32, "int8": 20}[tokens] * sum(map(len, sets)) / len(sets)
    )


@pytest.mark.parametrize(("tokens", "size"), [("float16", 1e5), ("int8", 1e19), ("float32", 1e30)])
def test_numbers_that_no_search_could_read_are_refused_before_they_are_acknowledged(tmp_path, tokens, size):
    sets = drawn(20)
    index = made(tmp_path / "i", sets, tokens)
    with pytest.raises(DataError, match=f"document 'large' holds a number of size .* {tokens} tokens hold .* scale"):
        index.add(["large"], [torch.full((2, DIM), size)], {"digest": "a", "name": "e"})
    assert len(MultiFolder.open(tmp_path / "i").search(sets[:1], 20)[0].ids) == 20


def test_what_is_removed_is_not_found_and_files_are_tidied(tmp_path):
    sets = drawn(120)
    index = made(tmp_path / "i", sets[:60])
    for first in range(60, 120, 6):  # many small files
        index.add([f"d{n}" for n in range(first, first + 6)], sets[first : first + 6], {"digest": "a"})
    gone = [f"d{n}" for n in range(0, 120, 2)]
    index.remove(gone)
    for one in (index, MultiFolder.open(tmp_path / "i")):
        assert len(one) == 60
        assert len(one.index.parts) < 10
        for query in drawn(4, 2):
            left = [name for name in truth(query, sets, 120)[0] if name not in gone]
            assert one.exact([query], 8)[0].ids == left[:8]
            assert not set(one.search([query], 8)[0].ids) & set(gone)


def test_bad_documents_and_queries_are_one_line_and_change_nothing(tmp_path):
    sets = drawn(30)
    index = made(tmp_path / "i", sets)
    encoder = {"digest": "a"}
    nan = sets[0].clone()
    nan[0, 0] = torch.nan
    for ids, some, identity, error, said in (
        (["x"], [torch.zeros(0, DIM)], encoder, DataError, r"'x' has tokens of shape \[0, 16\]"),
        (["x"], [torch.zeros(2, 7)], encoder, DataError, "'x' has tokens of shape"),
        (["x"], [nan], encoder, NonFiniteError, "'x' holds NaN"),
        (["d1"], [sets[0]], encoder, DataError, "'d1' is in the index already"),
        (["x", "x"], sets[:2], encoder, DataError, "stands twice"),
        (["x"], sets[:2], encoder, DataError, "1 ids for 2 documents"),
        (["x"], sets[:1], {"digest": "b", "name": "other"}, ConfigError, "do not mix"),
    ):
        with pytest.raises(error, match=said) as caught:
            index.add(ids, some, identity)
        assert "\n" not in str(caught.value)
    for query, error in ((torch.zeros(0, DIM), DataError), (torch.zeros(2, 3), DataError), (nan, NonFiniteError)):
        for search in (index.search, index.exact):
            with pytest.raises(error):
                search([query], 3)
    for bad in (lambda: index.search([sets[0]], 3, 0), lambda: index.exact([sets[0]], 0)):
        with pytest.raises(ConfigError, match="at least 1"):
            bad()
    assert len(MultiFolder.open(tmp_path / "i")) == 30
    plain = IndexFolder.create(tmp_path / "plain", "flat", torch.randn(3, 4))
    with pytest.raises(ConfigError, match="--multi"):
        MultiFolder(plain)


def adding(path, first, count):
    index, sets = MultiFolder.open(path), drawn(80, 5)
    done = 0
    while done < count:
        names = [f"p{first + done}"]
        try:
            done += index.add(names, sets[first + done : first + done + 1], {"digest": "a"})
        except OutputError:  # the other process is writing
            continue


def test_two_processes_that_add_at_once_lose_nothing(tmp_path):
    made(tmp_path / "i", drawn(10))
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=adding, args=(tmp_path / "i", first, 12)) for first in (0, 40)]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
        assert one.exitcode == 0
    index = MultiFolder.open(tmp_path / "i")
    assert len(index) == 34
    assert set(index.index.ids()) == {f"d{n}" for n in range(10)} | {f"p{n}" for n in (*range(12), *range(40, 52))}
    sets = drawn(80, 5)
    assert index.exact([sets[45]], 1)[0].ids == ["p45"]


@pytest.mark.parametrize("multi", [False, True])
def test_files_that_are_flipped_or_cut_are_named_and_never_answer_wrongly(tmp_path, multi):
    """200 flips and cuts over all files of an index: each is refused in one line, or changes no answer."""
    sets = drawn(40)
    if multi:
        made(tmp_path / "i", sets)
    else:
        IndexFolder.create(tmp_path / "i", "bits1+int8", torch.cat(sets)[:40]).add(
            [f"d{n}" for n in range(40)], torch.cat(sets)[:40]
        )
    query = drawn(1, 9)[0]

    def answers(path):
        if multi:
            index = MultiFolder.open(path)
            index.index.probes()
            return index.exact([query], 5)[0].ids, index.search([query], 5)[0].ids
        plain = IndexFolder.open(path)
        plain.probes()
        return [plain.search(query, 5)[0].ids]

    expected, generator = answers(tmp_path / "i"), random.Random(0)
    names = sorted(p.name for p in (tmp_path / "i").iterdir() if p.is_file() and p.name != "lock")
    refused = 0
    for turn in range(100):
        broken = tmp_path / f"b{turn}"
        shutil.copytree(tmp_path / "i", broken)
        file = broken / generator.choice(names)
        raw = bytearray(file.read_bytes())
        place = generator.randrange(len(raw))
        if turn % 4 == 0:
            raw = raw[:place]
        else:
            raw[place] ^= 1 << generator.randrange(8)
        file.write_bytes(bytes(raw))
        try:
            found = answers(broken)
        except LessenError as error:
            assert isinstance(error, ArtifactError)
            assert "\n" not in str(error)
            refused += 1
        else:
            assert found == expected, file.name
        shutil.rmtree(broken)
    assert refused > 90  # spaces of the record change nothing
