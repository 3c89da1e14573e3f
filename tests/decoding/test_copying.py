from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessen.decoding.copying import LONGEST_MATCH, PLACES_PER_KEY, Place, TextMemory, TokenIndex
from lessen.errors import ConfigError

texts = st.lists(st.integers(0, 3), max_size=80)


def test_a_key_never_finds_itself_and_finds_the_earlier_place():
    index = TokenIndex(3, [5, 6, 7])
    assert index.find(index.tokens) == []
    index.extend([8, 5, 6, 7])
    (place,) = index.find(index.tokens)
    assert (place.start, place.matched) == (3, 3)
    assert place.draft(4) == [8, 5, 6, 7]


@given(texts, st.integers(1, 5))
def test_every_place_agrees_exactly_as_far_as_it_says(text, length):
    index = TokenIndex(length, text)
    for place in index.find(text):
        count, limit = 0, min(LONGEST_MATCH, place.start, len(text))
        while count < limit and text[place.start - 1 - count] == text[len(text) - 1 - count]:
            count += 1
        assert place.matched == count >= length
        assert place.start < len(text)


@given(texts, st.integers(1, 4))
def test_the_first_place_of_a_key_is_kept_and_places_stay_few(text, length):
    index = TokenIndex(length, text)
    found = index.find(text)
    naive = [i for i in range(length, len(text)) if text[i - length : i] == text[-length:]]
    assert [place.start for place in found] == (
        naive if len(naive) <= PLACES_PER_KEY else [naive[0], *naive[-PLACES_PER_KEY + 1 :]]
    )


@given(texts, st.integers(0, 30))
def test_growing_step_by_step_equals_building_at_once(text, cut):
    grown = TokenIndex(2, text[:cut])
    grown.extend(text[cut:])
    assert grown.find(text) == TokenIndex(2, text).find(text)


def test_a_copy_past_the_end_of_the_text_repeats_what_it_copied():
    assert Place([1, 2, 3, 1, 2], 3, 3).draft(5) == [1, 2, 1, 2, 1]
    assert Place([1, 2, 3], 1, 3).draft(0) == []


def test_no_draft_and_no_key_crosses_a_break():
    memory = TextMemory(key_length=2)
    memory.add([4, 5, 6])
    memory.add([7, 4, 5])
    assert [place.draft(5) for place in memory.index.find([4, 5])] == [[6]]
    assert [place.draft(5) for place in memory.index.find([5, 6])] == []


def test_memory_is_bounded_and_forgets_the_oldest_first():
    memory = TextMemory(limit=30, key_length=2)
    for number in range(40):
        memory.add([number, number, 100 + number, 3, 4])
        assert len(memory.index) <= 60 + 6
    assert memory.index.find([0, 0]) == []
    assert memory.index.find([39, 39])[0].draft(1) == [139]


def test_a_text_longer_than_the_memory_keeps_its_end():
    memory = TextMemory(limit=4, key_length=2)
    memory.add(list(range(20)))
    assert memory.index.find([16, 17])[0].draft(3) == [18, 19]
    assert memory.index.find([3, 4]) == []


def test_key_length_must_be_positive():
    with pytest.raises(ConfigError, match="key_length"):
        TokenIndex(0)
