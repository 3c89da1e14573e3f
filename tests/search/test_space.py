"""Spaces: what a file may say, genomes to recipes, and what predictors read of them."""

from __future__ import annotations

import numpy as np
import pytest

from lessen.errors import ConfigError
from lessen.recipe import Recipe
from lessen.search import Space

TEXT = [
    ["none", {"linear-low-rank": {"energy": {"any": [0.9, 0.95]}}}],
    {"each": ["hidden", "out"], "of": ["none", "linear-int8"]},
    [{"emb-rowwise-quant": {"bits": {"any": [8, 4]}}}],
]


def test_any_knobs_and_places_make_the_slots():
    space = Space.parse(TEXT)
    assert space.widths == (3, 2, 2, 2)
    assert space.size == 24
    assert len(set(space.genomes())) == 24


def test_equal_steps_of_a_list_of_places_become_one_step():
    space = Space.parse(TEXT)
    both, one = space.recipe((0, 1, 1, 0)), space.recipe((0, 1, 0, 0))
    assert [step.card.name for step in both.steps] == ["linear-int8", "emb-rowwise-quant"]
    assert both.steps[0].only == ("hidden", "out")
    assert one.steps[0].only == ("hidden",)


def test_names_say_what_differs_and_no_two_recipes_share_one():
    space = Space.parse(TEXT)
    recipes = [space.recipe(genome) for genome in space.genomes()]
    assert len({recipe.name for recipe in recipes}) == 24
    assert "bits=4" in space.recipe((0, 0, 0, 1)).name
    for recipe in recipes:
        assert Recipe.parse(recipe.describe()).hash == recipe.hash


def test_what_is_left_out_is_masked():
    space = Space.parse([["none", "linear-int8"], ["none", "emb-half"]])
    features = space.features([(0, 0), (1, 0), (1, 1)])
    assert np.array_equal(features, [[0, 0], [1, 0], [1, 1]])


def test_a_space_is_known_by_its_options():
    assert Space.parse(TEXT).digest == Space.parse(TEXT).digest
    assert Space.parse(TEXT[:2]).digest != Space.parse(TEXT).digest


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "expected a list of slots"),
        ([["none"]], "nothing to choose"),
        ([["none", "none"]], "stands there twice"),
        ([["none", {"linear-int8": {"depth": 3}}]], "slot 1: the knobs|slot 1"),
        ([["none", "linear-int9"]], "linear-int9"),
        ([{"each": "hidden", "of": ["none", "linear-int8"]}], "list of places"),
        ([{"each": ["a", "a"], "of": ["none", "linear-int8"]}], "twice"),
        ([{"each": ["a"], "of": ["none", {"linear-int8": {"only": ["b"]}}]}], "says `only` itself"),
        ([{"each": ["a"], "of": ["none", {"linear-int8": {}, "rtn": {}}]}], "place 'a': expected one method"),
        ([{"each": ["a"], "of": ["none", {}]}], "place 'a': expected one method"),
        ([{"each": ["a"], "of": ["none", ["rtn"]]}], "place 'a': expected one method"),
        ([{"each": ["a"], "of": ["none", {"rtn": ["bits"]}]}], "place 'a': the knobs of rtn must be a mapping"),
        ([{"each": ["a"], "of": ["none", {"rtn": "bits"}]}], "place 'a': the knobs of rtn must be a mapping"),
    ],
)
def test_bad_spaces_are_refused_by_name(value, message):
    with pytest.raises(ConfigError, match=message):
        Space.parse(value)
