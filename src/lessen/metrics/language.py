"""Metrics of language models and of answers: sums a document or a question, never one number a token.

All are ratios of sums over documents, so that a long document counts as much as its tokens, and resampling draws
documents.
"""

from __future__ import annotations

import math

import numpy as np

from lessen.metrics.base import RULE, Floats, MeanMetric, RatioMetric
from lessen.metrics.outcomes import Outcomes


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


class ExactMatch(MeanMetric):
    """Share of questions whose answer is right; `answers.exact_match` compares two texts."""

    name, title = "exact-match", "exact match"
    reads = ("right",)

    def each(self, outcomes: Outcomes) -> Floats:
        """Return 1 for each right answer."""
        return outcomes["right"].astype(np.float64)

    def resolution(self, outcomes: Outcomes) -> float:
        """Return 3.69 / n: the end of the interval where none of n answers changed."""
        return RULE / len(outcomes)


class TokenF1(MeanMetric):
    """Mean over questions of the overlap of words with the nearest reference; see `answers.token_f1`."""

    name, title = "token-f1", "F1 of words"
    reads = ("f1",)

    def each(self, outcomes: Outcomes) -> Floats:
        """Return the F1 of each answer."""
        return outcomes["f1"].astype(np.float64)


class RougeL(MeanMetric):
    """Mean over texts of the longest common subsequence of words with the nearest reference; see `answers.rouge_l`."""

    name, title = "rouge-l", "ROUGE-L"
    reads = ("rouge_l",)

    def each(self, outcomes: Outcomes) -> Floats:
        """Return the ROUGE-L of each text."""
        return outcomes["rouge_l"].astype(np.float64)
