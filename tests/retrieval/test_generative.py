"""Generative retrieval: the trie allows what is there and no more, and beams find what scoring every document finds."""

from __future__ import annotations

import pytest
import torch

from lessen.errors import ConfigError, DataError, NothingMatchedError, TaskError
from lessen.method import Context
from lessen.methods.retrieval.hype import HyPE
from lessen.retrieval.categories import nested
from lessen.retrieval.document_writer import DocumentWriter, PathGuide
from lessen.retrieval.generative import Writer
from lessen.retrieval.trie import Trie
from lessen.tasks.retrieval.written import WrittenOptions, WrittenTask

VOCABULARY = 40


def sequences(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = {tuple(torch.randint(5, 12, (3,), generator=generator).tolist()) for _ in range(count * 3)}
    return [[*one, 1] for one in sorted(drawn)[:count]]


def test_the_trie_allows_what_a_search_through_all_sequences_allows():
    given = sequences()
    trie = Trie.of(given)
    prefixes = {tuple(one[:n]) for one in given for n in range(len(one) + 1)}
    for prefix in prefixes:
        node = 0
        for token in prefix:
            node = trie.follow(node, token)
        expected = sorted(
            {one[len(prefix)] for one in given if tuple(one[: len(prefix)]) == prefix and len(one) > len(prefix)}
        )
        assert trie.allowed(node).tolist() == expected
        assert trie.document(node) == (given.index(list(prefix)) if list(prefix) in given else -1)
    with pytest.raises(KeyError):
        trie.follow(0, 39)
    assert trie.bytes < 100 * len(given)


@pytest.fixture(scope="module")
def model():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=2, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    made = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for one in made.parameters():
            one.mul_(3.0)
    return made


def score(model, query, path, sequence):
    """The log-probability of an id after a path, by teacher forcing, and that of the path itself."""
    whole = torch.tensor([[0, *path, *sequence]])
    with torch.no_grad():
        said = model(input_ids=query, decoder_input_ids=whole[:, :-1]).logits[0].log_softmax(1)
    each = said[range(len(path) + len(sequence)), whole[0, 1:]]
    return float(each[len(path) :].sum()), float(each[: len(path)].sum())


@pytest.mark.parametrize("with_path", [False, True])
def test_enough_beams_find_what_scoring_every_document_finds(model, with_path):
    given, query = sequences(), torch.tensor([[7, 9, 21, 33]])
    paths = [[30, 31], [32], [33, 34, 35]]
    expected: dict[int, tuple[float, int]] = {}
    for number, path in enumerate(paths):
        for document, sequence in enumerate(given):
            own, before = score(model, query, path, sequence)
            total = own + (before if with_path else 0.0)
            if document not in expected or total > expected[document][0]:
                expected[document] = (total, number)
    writer = Writer(model, Trie.of(given))
    found = writer.search(query, torch.ones_like(query), paths, beams=len(given), with_path=with_path)
    order = sorted(expected, key=lambda d: -expected[d][0])
    assert [hit.document for hit in found] == order
    assert [hit.path for hit in found] == [expected[d][1] for d in order]
    torch.testing.assert_close(
        torch.tensor([hit.score for hit in found]), torch.tensor([expected[d][0] for d in order]), atol=1e-4, rtol=1e-4
    )
    turned = writer.search(query, torch.ones_like(query), paths[::-1], beams=len(given), with_path=with_path)
    assert [hit.document for hit in turned] == order


def test_few_beams_give_few_documents_that_are_there(model):
    given, query = sequences(), torch.tensor([[3, 4]])
    found = Writer(model, Trie.of(given)).search(query, torch.ones_like(query), beams=5)
    assert 1 <= len(found) <= 20
    assert len({hit.document for hit in found}) == len(found)
    exact = max(range(len(given)), key=lambda d: score(model, query, [], given[d])[0])
    wide = Writer(model, Trie.of(given)).search(query, torch.ones_like(query), beams=60)
    assert wide[0].document == exact


def test_bad_input(model):
    with pytest.raises(DataError, match="the id of document 1 is that of document 0"):
        Trie.of([[1, 2], [1, 2]])
    with pytest.raises(DataError, match="the id of document 0 begins another"):
        Trie.of([[1], [1, 2]])
    with pytest.raises(DataError, match="the id of document 0 is empty"):
        Trie.of([[]])
    with pytest.raises(DataError, match="no document"):
        Trie.of([])
    with pytest.raises(ConfigError, match="0 paths"):
        Writer(model, Trie.of([[5]])).search(torch.tensor([[3]]), torch.ones(1, 1), paths=[])


def test_paths_lead_to_ids_and_the_best_entry_of_a_document_counts(model):
    paths = [[5, 2], [6, 7, 2], [6, 8, 2]]
    guide = PathGuide.of(paths, 2, 3)
    guide.check()
    assert guide.all_paths() == paths
    writer = DocumentWriter(model)
    query = torch.tensor([[7, 9, 11]])
    mask, trie = torch.ones_like(query), Trie.of(sequences(12))
    plain = writer.search(trie, query, mask, 12)
    assert [hit.document for hit in plain] == [
        hit.document for hit in Writer(model, trie).search(query, mask, beams=12)
    ]
    writer.guide = guide
    chosen = guide.paths(model, query, mask)
    each = {tuple(path): score(model, query, [], path)[0] for path in paths}
    assert chosen == sorted(paths, key=lambda path: -each[tuple(path)])[:2]
    found = writer.search(trie, query, mask, 12)
    best = {
        n: max(score(model, query, path, one)[0] for path in chosen) for n, one in enumerate(sequences(12))
    }  # as many beams as documents: every document along every path
    assert [hit.document for hit in found] == sorted(best, key=lambda n: -best[n])
    for hit in found:
        assert hit.score == pytest.approx(best[hit.document], abs=1e-4)
    broken = PathGuide.of(paths, 2, 3)
    broken.ends[0] = 6
    with pytest.raises(ValueError, match="ends do not cut"):
        broken.check()


def test_targets_begin_with_paths_and_the_judge_sees_the_same_ids():
    task = WrittenTask(WrittenOptions(documents=12, queries=4, width=16, beams=3))
    seen = HyPE().prepare(task, Context())
    inputs, labels, documents = next(iter(seen.batches("train")))
    for row, document in zip(labels.tolist(), documents.tolist(), strict=True):
        assert [one for one in row if one != -100] == [*task.paths()[document], *task.ids[document]]
    assert torch.equal(inputs["decoder_input_ids"][:, 1:], labels[:, :-1].clamp(min=0))
    assert seen.fingerprint() == task.fingerprint()
    with pytest.raises(TaskError, match="without a path"):
        HyPE().prepare(task.view(paths=lambda: [[], [3, 2]]), Context())
    with pytest.raises(NothingMatchedError, match="hype"):
        HyPE().apply(torch.nn.Sequential(torch.nn.Linear(2, 2)), task, Context())


def test_a_tree_over_vectors_keeps_what_lies_together():
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(6)[:, :6]
    owner = torch.arange(60) % 6
    vectors = centres[owner] + 0.05 * torch.randn(60, 6, generator=generator)
    paths = nested(vectors, (6,))
    assert len({tuple(path) for path in paths}) == 6
    assert all(len({tuple(paths[n]) for n in range(60) if int(owner[n]) == one}) == 1 for one in range(6))
    assert nested(vectors, (6, 2)) == nested(vectors, (6, 2))
    assert all(len(path) == 2 for path in nested(vectors[:3], (6, 2)))
