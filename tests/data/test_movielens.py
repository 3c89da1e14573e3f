"""The split table of the research note, reproduced; skipped where the package cannot be had."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from lessen import data
from lessen.data.movielens import (
    FOLDER,
    TEST,
    TRAIN,
    Ratings,
    encode,
    liked_before,
    load_ratings,
    partition,
)
from lessen.errors import DataError
from lessen.metrics import AUC


@pytest.fixture(scope="module")
def package() -> Path:
    try:
        return data.get("movielens-100k")
    except DataError as error:
        pytest.skip(f"MovieLens-100k is not at hand: {error}")


@pytest.fixture(scope="module")
def ratings(package: Path) -> Ratings:
    return load_ratings(package)


# rows of train, validation, test; positive shares; test rows of unseen users; mean history; empty histories
EXPECTED = {
    "cold": ((80_000, 10_000, 10_000), (0.551, 0.567, 0.563), 0.858, 35.1, 0.035),
    "warm": ((80_367, 10_037, 9_596), (0.573, 0.482, 0.471), 0.0, 44.2, 0.0),
    "random": ((80_000, 10_000, 10_000), (0.554, 0.555, 0.547), None, None, None),
}


@pytest.mark.parametrize("cut", EXPECTED)
def test_splits_have_the_published_numbers(ratings: Ratings, cut: str) -> None:
    rows, positive, unseen, history, empty = EXPECTED[cut]
    part = partition(ratings, cut)  # type: ignore[arg-type]
    assert tuple(np.bincount(part)) == rows
    assert tuple(round(float(ratings.label[part == k].mean()), 3) for k in range(3)) == positive
    if unseen is None:
        return
    test, train = part == TEST, part == TRAIN
    assert round(1 - float(np.isin(ratings.user[test], ratings.user[train]).mean()), 3) == unseen
    liked = liked_before(ratings, 50)[test]
    # the note counts the liked items that its train vocabulary knows
    known = np.isin(ratings.item, ratings.item[train])
    assert round(float(((liked >= 0) & known[liked]).sum(axis=1).mean()), 1) == history
    assert round(float((liked < 0).all(axis=1).mean()), 3) == empty


@pytest.mark.parametrize(("cut", "expected"), [("warm", 0.73342), ("cold", 0.7055), ("random", 0.7135)])
def test_item_mean_anchor(ratings: Ratings, cut: str, expected: float) -> None:
    part = partition(ratings, cut)  # type: ignore[arg-type]
    train, test = part == TRAIN, part == TEST
    item = np.unique(ratings.item, return_inverse=True)[1]
    count = np.bincount(item[train], minlength=item.max() + 1)
    liked = np.bincount(item[train], ratings.label[train], minlength=item.max() + 1)
    rate = (liked + 5 * ratings.label[train].mean()) / (count + 5)
    assert AUC(rate[item][test], ratings.label[test]) == pytest.approx(expected, abs=6e-5 if cut != "warm" else 6e-6)


def test_history_is_the_strict_past_of_the_same_user(ratings: Ratings) -> None:
    history = liked_before(ratings, 20)
    row, place = np.nonzero(history >= 0)
    past = history[row, place]
    assert (ratings.timestamp[past] < ratings.timestamp[row]).all()
    assert (ratings.user[past] == ratings.user[row]).all()
    assert (ratings.label[past] == 1).all()


def test_history_equals_a_plain_loop(ratings: Ratings) -> None:
    history = liked_before(ratings, 5)
    for row in np.random.default_rng(0).integers(0, len(ratings), 40):
        mine = (ratings.user == ratings.user[row]) & (ratings.label == 1) & (ratings.timestamp < ratings.timestamp[row])
        last = np.flatnonzero(mine)[-5:]
        assert history[row].tolist() == [*last.tolist(), *[-1] * (5 - len(last))]


def test_labels_of_held_out_rows_change_no_feature_of_the_train_rows(ratings: Ratings) -> None:
    part = partition(ratings, "warm")
    before, _ = encode(ratings, part, 20)
    flipped = ratings.label.copy()
    flipped[part != TRAIN] = 1 - flipped[part != TRAIN]
    after, _ = encode(Ratings(**{**vars(ratings), "label": flipped}), part, 20)
    train = part == TRAIN
    assert np.array_equal(before.ids[train], after.ids[train])


def test_vocabularies_come_from_train_and_unseen_values_get_the_first_row(ratings: Ratings) -> None:
    part = partition(ratings, "cold")
    columns, layout = encode(ratings, part, 20)
    user = layout.segments[0]
    ids = columns.ids[:, 0].numpy()
    unseen = ~np.isin(ratings.user, ratings.user[part == TRAIN])
    assert (ids[unseen] == user.start).all()
    assert (ids[~unseen] > user.start).all()
    assert user.rows == 751 + 1
    assert (np.bincount(ids[part == TRAIN], minlength=user.start + user.rows)[user.start] == 0).all()
    # each field stays inside its segment; the history shares the items' rows
    segments = {segment.name: segment for segment in layout.segments}
    for field in layout.fields:
        values = columns.ids[:, field.start : field.start + field.width].numpy()
        values = values[values > 0]
        segment = segments[field.segment]
        assert segment.start <= values.min() <= values.max() < segment.start + segment.rows
    assert layout.field("history").segment == "item"
    assert columns.ids.numpy().dtype == np.int32


def test_changed_or_truncated_package_is_refused(package: Path, tmp_path: Path) -> None:
    broken = tmp_path / "recbole.whl"
    broken.write_bytes(package.read_bytes()[:1_000_000])
    with pytest.raises(DataError, match="cannot read"):
        load_ratings(broken)
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr(f"{FOLDER}.inter", "user_id:token\n1\n")
    with pytest.raises(DataError, match="not the published file"):
        load_ratings(broken)
