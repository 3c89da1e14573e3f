"""Metrics of language models. They read sums of each document: nll in nats, tokens, bytes, right.

All are ratios of sums over documents, so that a long document counts as much as its tokens, and resampling draws
documents.
"""

from __future__ import annotations

import numpy as np

from lessen.metrics.base import Floats, Metric
from lessen.metrics.outcomes import Outcomes


class Perplexity(Metric):
    """exp of the mean negative log-likelihood of a token."""

    name = "perplexity"
    higher_is_better = False
    reads = ("nll", "tokens")

    def weighted(self, outcomes: Outcomes, weights: Floats) -> Floats:
        """Return exp(w.nll / w.tokens)."""
        return np.exp(_ratio(outcomes, weights, "nll", "tokens"))


class BitsPerByte(Metric):
    """Bits that the model needs for a byte of text: comparable between tokenizers, as perplexity is not."""

    name, title, unit = "bits-per-byte", "bits per byte", "bit"
    higher_is_better = False
    reads = ("nll", "bytes")

    def weighted(self, outcomes: Outcomes, weights: Floats) -> Floats:
        """Return w.nll / (ln 2 w.bytes)."""
        return _ratio(outcomes, weights, "nll", "bytes") / np.log(2.0)


class NextTokenAccuracy(Metric):
    """Share of tokens that the model holds most likely."""

    name, title = "next-token-accuracy", "next-token accuracy"
    reads = ("right", "tokens")

    def weighted(self, outcomes: Outcomes, weights: Floats) -> Floats:
        """Return w.right / w.tokens."""
        return _ratio(outcomes, weights, "right", "tokens")


def _ratio(outcomes: Outcomes, weights: Floats, above: str, below: str) -> Floats:
    """Return w.above / w.below for each row of weights, float64 [resamples]."""
    ratio: Floats = (weights @ outcomes[above].astype(np.float64)) / (weights @ outcomes[below].astype(np.float64))
    return ratio
