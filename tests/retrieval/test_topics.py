"""Topics from keywords: the mean of the nearest documents, as many as asked for, and what they are good for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lessen.errors import ConfigError, DataError
from lessen.retrieval.topics import TopicSettings, confidence, find_topic, in_domain, scores
from lessen.stored.vectors.flat import Int8Vectors
from lessen.stored.vectors.product import ProductVectors


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def corpus(topics=5, each=60, dim=32):
    """Documents about one of several topics, keywords near each, labels."""
    centres = drawn(topics, dim)
    labels = torch.arange(topics).repeat_interleave(each)
    return (
        centres[labels] + 0.9 * drawn(topics * each, dim, seed=1),
        centres + 0.5 * drawn(4, topics, dim, seed=2),
        labels,
    )


def auc(values, right):
    ranks = values.argsort().argsort().double() + 1
    positive = int(right.sum())
    return float((ranks[right].sum() - positive * (positive + 1) / 2) / (positive * (len(right) - positive)))


def test_a_topic_is_the_mean_of_its_nearest_documents():
    documents, keywords = drawn(50, 8), drawn(3, 8, seed=1)
    query = F.normalize(keywords, dim=1).mean(0)
    order = torch.cosine_similarity(documents, query[None]).argsort(descending=True)
    topic = find_topic(keywords, documents, TopicSettings(at_least=7))
    assert topic.chosen.tolist() == order[:7].tolist()
    torch.testing.assert_close(topic.vector, documents[order[:7]].mean(0))
    published = find_topic(keywords, documents, TopicSettings(at_least=1))
    assert published.chosen.tolist() == order[:1].tolist()
    assert len(find_topic(keywords, documents[:4]).chosen) == 4
    torch.testing.assert_close(find_topic(5 * keywords, documents).vector, find_topic(keywords, documents).vector)


def test_a_larger_offset_never_takes_fewer_documents():
    documents, keywords = drawn(50, 8), drawn(3, 8, seed=1)
    counts = [len(find_topic(keywords, documents, TopicSettings(1, offset=o)).chosen) for o in (0, 0.1, 0.4, 3)]
    assert counts == sorted(counts)
    assert counts[-1] == 50
    assert len(find_topic(keywords, documents, TopicSettings(1, at_most=5, offset=3)).chosen) == 5
    assert len(find_topic(keywords, documents, TopicSettings(1, threshold=-2.0)).chosen) == 50


def test_documents_that_lie_apart_are_left_out():
    pytest.importorskip("sklearn")
    documents = torch.cat([torch.ones(30, 4) + 0.01 * drawn(30, 4), torch.tensor([[9.0, 9.0, 9.0, 8.0]])])
    topic = find_topic(torch.ones(1, 4), documents, TopicSettings(at_least=31, clean=True))
    assert 30 not in topic.chosen.tolist()


def test_topics_rank_documents_and_survive_codes():
    documents, keywords, labels = corpus()
    topics = [find_topic(keywords[:, one], documents, TopicSettings(20)) for one in range(5)]
    cosines = scores(documents, topics)
    plain = [auc(cosines[:, one], labels == one) for one in range(5)]
    assert min(plain) > 0.97
    held = Int8Vectors.of(documents).dequantise()
    rounded = scores(held, [find_topic(keywords[:, one], held, TopicSettings(20)) for one in range(5)])
    assert max(abs(auc(rounded[:, one], labels == one) - plain[one]) for one in range(5)) < 0.005
    coarse = ProductVectors.of(documents[:250], groups=2)
    coarse.add(documents[250:])
    few = scores(coarse.dequantise(), topics)
    assert sum(auc(few[:, one], labels == one) for one in range(5)) < sum(plain)
    sure = confidence(cosines)
    assert bool((sure > 0.2).all() and (sure <= 1).all())


def test_calibration_documents_are_dealt_over_topics():
    documents, keywords, labels = corpus()
    cosines = scores(documents, [find_topic(keywords[:, one], documents) for one in (0, 3)])
    chosen = in_domain(cosines, 20)
    assert len(chosen) == len(set(chosen)) == 20
    counts = torch.bincount(labels[chosen], minlength=5).tolist()
    assert counts[0] + counts[3] >= 18
    assert abs(counts[0] - counts[3]) <= 2
    assert len(in_domain(cosines, 10_000)) == len(documents)


def test_bad_input():
    with pytest.raises(DataError, match="make no topic"):
        find_topic(torch.zeros(0, 8), drawn(5, 8))
    with pytest.raises(DataError, match="make no topic"):
        find_topic(drawn(2, 7), drawn(5, 8))
    with pytest.raises(ConfigError, match="are not accepted"):
        TopicSettings(at_least=0)
    with pytest.raises(ConfigError, match="are not accepted"):
        TopicSettings(at_least=5, at_most=4)
