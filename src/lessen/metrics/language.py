"""Metrics of language models and of answers: sums a document or a question, never one number a token.

All are ratios of sums over documents, so that a long document counts as much as its tokens, and resampling draws
documents.
"""

from __future__ import annotations

import math

import numpy as np

from lessen.metrics.base import Floats, RatioMetric


class Perplexity(RatioMetric):
    """exp of the mean negative log-likelihood of a token: exp(sum of nll / sum of tokens)."""

    name = "perplexity"
    higher_is_better = False
    reads = ("nll", "tokens")

    def of_sums(self, totals: Floats) -> Floats:
        """Return exp(nll / tokens)."""
        return np.exp(super().of_sums(totals))


class BitsPerByte(RatioMetric):
    """Bits that the model needs for a byte of text: comparable between tokenizers, as perplexity is not."""

    name, title, unit = "bits-per-byte", "bits per byte", "bit"
    higher_is_better = False
    reads = ("nll", "bytes")

    def of_sums(self, totals: Floats) -> Floats:
        """Return nll / (ln 2 bytes)."""
        return super().of_sums(totals) / math.log(2.0)


class NextTokenAccuracy(RatioMetric):
    """Share of tokens that the model holds most likely: sum of right / sum of tokens."""

    name, title = "next-token-accuracy", "next-token accuracy"
    reads = ("right", "tokens")
