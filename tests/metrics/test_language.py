from __future__ import annotations

import math

import numpy as np
import pytest

from lessen.metrics import BITS_PER_BYTE, NEXT_TOKEN, PERPLEXITY, Outcomes, find_metric

DOCUMENTS = [([0.5, 1.5], 9, 1), ([2.0], 4, 0), ([0.1, 0.2, 0.3], 11, 3)]  # nats of each token, bytes, right


def outcomes():
    return Outcomes(
        {
            "nll": np.array([sum(nats) for nats, _, _ in DOCUMENTS]),
            "tokens": np.array([len(nats) for nats, _, _ in DOCUMENTS]),
            "bytes": np.array([size for _, size, _ in DOCUMENTS]),
            "right": np.array([right for _, _, right in DOCUMENTS]),
        }
    )


def test_they_equal_means_over_all_tokens_of_all_documents():
    tokens = [nat for nats, _, _ in DOCUMENTS for nat in nats]
    assert PERPLEXITY(outcomes()) == pytest.approx(math.exp(sum(tokens) / len(tokens)), rel=1e-12)
    assert BITS_PER_BYTE(outcomes()) == pytest.approx(sum(tokens) / math.log(2) / 24, rel=1e-12)
    assert NEXT_TOKEN(outcomes()) == pytest.approx(4 / 6, rel=1e-12)


def test_a_resample_is_the_metric_of_the_documents_it_drew():
    drawn = np.array([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    twice_first = [0.5, 1.5, 0.5, 1.5, 0.1, 0.2, 0.3]
    values = PERPLEXITY.weighted(outcomes(), drawn)
    assert values == pytest.approx([math.exp(sum(twice_first) / 7), math.exp(2.0)], rel=1e-12)


def test_they_are_found_by_name_and_say_their_direction():
    assert [find_metric(name).higher_is_better for name in ("perplexity", "bits-per-byte", "next-token-accuracy")] == [
        False,
        False,
        True,
    ]
