"""Answers against their references, by published examples and by a naive longest common subsequence."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessen.metrics import ExactMatch, Outcomes, RougeL, TokenF1
from lessen.metrics.answers import exact_match, rouge_l, token_f1


def test_squad_forgives_case_articles_and_punctuation():
    assert exact_match("The Denver Broncos.", ["Carolina Panthers", "denver broncos"])
    assert not exact_match("Denver", ["Denver Broncos"])
    assert token_f1("the Denver", ["Denver Broncos"]) == pytest.approx(2 / 3)
    assert token_f1("", ["a the"]) == 1.0
    assert token_f1("yes", [""]) == 0.0
    assert token_f1("cat cat sat", ["cat sat on mat", "dog"]) == pytest.approx(2 * 2 / 7)


def test_lins_examples():
    """Lin (2004), section 3: S1 is "police killed the gunman"."""
    assert rouge_l("police kill the gunman", ["police killed the gunman"]) == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", ["police killed the gunman"]) == pytest.approx(0.5)
    assert rouge_l("The gunman, police killed!", ["police killed the gunman"]) == pytest.approx(0.5)
    assert rouge_l("", ["police"]) == 0.0


@given(st.lists(st.sampled_from("abcd"), max_size=7), st.lists(st.sampled_from("abcd"), min_size=1, max_size=7))
def test_rouge_equals_a_search_of_all_subsequences(found, expected):
    def parts(words):
        return {
            tuple(words[i] for i in chosen)
            for size in range(len(words) + 1)
            for chosen in combinations(range(len(words)), size)
        }

    longest = max(map(len, parts(found) & parts(expected)))
    value = 2 * longest / (len(found) + len(expected)) if found else 0.0
    assert rouge_l(" ".join(found), [" ".join(expected)]) == pytest.approx(value)


def test_metrics_are_means_of_their_columns():
    columns = {"right": np.array([True, False]), "f1": np.array([1.0, 0.5]), "rouge_l": np.array([0.2, 0.4])}
    outcomes = Outcomes(columns)
    assert [metric(outcomes) for metric in (ExactMatch(), TokenF1(), RougeL())] == pytest.approx([0.5, 0.75, 0.3])
    assert ExactMatch().resolution(outcomes) == pytest.approx(3.69 / 2)
