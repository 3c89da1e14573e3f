"""Generative retrieval: the trie allows what is there and no more, and beams find what scoring every document finds."""

from __future__ import annotations

import pytest
import torch

from lessen.errors import ConfigError, DataError
from lessen.retrieval.generative import Writer
from lessen.retrieval.trie import Trie

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
