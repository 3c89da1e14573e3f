from __future__ import annotations

import pytest

from lessen.checkpoints.byte_map import Array, ByteMap
from lessen.checkpoints.groups import find_groups, natural, pieces


def mapped(path: str, *arrays: tuple[str, tuple[int, ...]], kind: str = "F32", container: str = "torch") -> ByteMap:
    made, at = [], 0
    for name, shape in arrays:
        count = 4
        for size in shape:
            count *= size
        made.append(Array(name, kind, shape, at, count))
        at += count
    return ByteMap(path, at, tuple(made), container)


class Told:
    """Movement as given: weights that moved before, arrays that moved now, arrays that come and go."""

    def __init__(self, trusted=(), moving=(), loose=()):
        self.trusts, self.moved, self.is_loose = (
            set(trusted).__contains__,
            set(moving).__contains__,
            set(loose).__contains__,
        )


def named(maps, group):
    return {role: maps[i].arrays[j].name for role, (i, j) in group.members.items()}


def adam(index: int, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"optimizer/state/{index}/{leaf}", shape) for leaf in ("step", "exp_avg", "exp_avg_sq")][1:]


def test_moments_find_their_weights_by_shape_and_order():
    maps = [
        mapped(
            "c.pt",
            ("model/a", (4, 4)),
            ("model/b", (3,)),
            ("model/c", (4, 4)),
            *adam(0, (4, 4)),
            *adam(1, (3,)),
            *adam(2, (4, 4)),
        )
    ]
    groups = [named(maps, group) for group in find_groups(maps)]
    assert groups[0] == {
        "weight": "model/a",
        "first": "optimizer/state/0/exp_avg",
        "second": "optimizer/state/0/exp_avg_sq",
    }
    assert groups[1]["weight"] == "model/b"
    assert groups[2]["weight"] == "model/c"
    assert len(groups) == 3


def test_moments_of_our_own_lazy_adam_are_known_and_a_layer_named_first_is_no_moment():
    table = [("optimizer/1.0.first", (9, 4)), ("optimizer/1.0.second", (9, 4)), ("optimizer/1.0.last", (1300,))]
    maps = [mapped("state.safetensors", ("model/first", (9, 4)), *table, container="safetensors")]
    groups = [named(maps, group) for group in find_groups(maps)]
    assert groups[0] == {
        "weight": "model/first",
        "first": "optimizer/1.0.first",
        "second": "optimizer/1.0.second",
    }
    assert {"other": "optimizer/1.0.last"} in groups


def test_every_array_is_in_exactly_one_group():
    maps = [
        mapped("c.pt", ("model/a", (40, 40)), ("ema/a", (40, 40)), ("rng", (2000,)), *adam(0, (40, 40)), *adam(1, (5,)))
    ]
    places = [place for group in find_groups(maps) for place in group.members.values()]
    assert sorted(places) == [(0, j) for j in range(len(maps[0].arrays))]


def test_small_arrays_that_are_no_weights_stay_with_the_structure_of_their_file():
    maps = [mapped("c.pt", ("model/a", (4, 4)), ("scores", (1023,)), ("history", (1024,)), *adam(0, (4, 4)))]
    assert [named(maps, group) for group in find_groups(maps)][1:] == [{"other": "history"}]
    assert len(find_groups(maps, movement=Told(loose=[(0, 2)]))) == 1


def test_moments_without_a_weight_are_kept_exactly():
    maps = [mapped("c.pt", ("model/a", (4, 4)), *adam(0, (5,)))]
    assert not any(group.near for group in find_groups(maps))


def test_copies_of_the_model_are_not_taken_for_it():
    maps = [mapped("c.pt", ("best/a", (4, 4)), ("ema_model/a", (4, 4)), ("model/a", (4, 4)), *adam(0, (4, 4)))]
    assert named(maps, find_groups(maps)[0])["weight"] == "model/a"


def test_optimisers_that_know_names_are_believed():
    maps = [
        mapped(
            "c.pt",
            ("model/a", (4, 4)),
            ("model/b", (4, 4)),
            ("optimizer/state/b/exp_avg", (4, 4)),
            ("optimizer/state/a/exp_avg", (4, 4)),
        )
    ]
    pairs = {named(maps, group)["weight"]: named(maps, group).get("first") for group in find_groups(maps)}
    assert pairs == {"model/a": "optimizer/state/a/exp_avg", "model/b": "optimizer/state/b/exp_avg"}


def test_weights_and_optimiser_may_be_in_different_files_and_shards():
    maps = [
        mapped("model-00001-of-00002.safetensors", ("layers.10.w", (4, 4)), ("layers.2.w", (4, 4)), container="safetensors"),
        mapped("model-00002-of-00002.safetensors", ("head", (6, 4)), container="safetensors"),
        mapped("optimizer.pt", *[("state/" + n.removeprefix("optimizer/state/"), s) for k, shape in enumerate([(4, 4), (4, 4), (6, 4)]) for n, s in adam(k, shape)]),
    ]  # fmt: skip
    weights = [named(maps, group).get("weight") for group in find_groups(maps)]
    assert weights == ["layers.2.w", "layers.10.w", "head"]


def test_momentum_counts_as_a_first_moment():
    maps = [mapped("c.pt", ("model/a", (4, 4)), ("optimizer/state/0/momentum_buffer", (4, 4)))]
    group = find_groups(maps)[0]
    assert set(group.members) == {"weight", "first"}
    assert group.near


def test_our_own_loop_joins_names_with_a_dot():
    maps = [
        mapped(
            "c.safetensors", ("model/a", (4, 4)), ("optimizer/0.exp_avg", (4, 4)), ("optimizer/0.exp_avg_sq", (4, 4))
        )
    ]
    assert set(find_groups(maps)[0].members) == {"weight", "first", "second"}


def test_weights_alone_count_only_when_asked_and_once_they_moved():
    maps = [mapped("c.safetensors", ("a", (40, 40)), ("b", (2,)), ("inv_freq", (2,)))]
    assert not any(group.near for group in find_groups(maps))
    first = find_groups(maps, weights_alone=True)
    assert [named(maps, group) for group in first] == [{"weight": "a"}, {"weight": "b"}]
    assert not any(group.near for group in first)  # nothing tells yet what training moves
    later = find_groups(maps, weights_alone=True, movement=Told(trusted=[(0, 0)], moving=[(0, 1)]))
    assert all(group.near for group in later)
    assert not any(group.near for group in find_groups(maps, weights_alone=True, movement=Told()))


def test_pieces_cover_every_element_once():
    for shape in [(), (1,), (7,), (3_000_000,), (5, 3), (1200, 1000), (2, 3_000_000), (4, 5, 6), (100_000, 16)]:
        count = 1
        for size in shape:
            count *= size
        at = 0
        for start, rows, columns in pieces(shape):
            assert start == at
            assert rows * columns <= 1 << 19
            at += rows * columns
        assert at == count


def test_natural_order():
    assert sorted(["w10", "w2", "w1.b", "w1.a"], key=natural) == ["w1.a", "w1.b", "w2", "w10"]


def test_more_arrays_than_moments_are_near_only_once_it_is_known_which_stand_still():
    maps = [mapped("c.pt", ("model/frozen", (64, 64)), ("model/moving", (64, 64)), *adam(0, (64, 64)))]
    assert not any(group.near for group in find_groups(maps))
    told = find_groups(maps, movement=Told(moving=[(0, 1)]))
    assert named(maps, told[0])["weight"] == "model/moving"
    assert told[0].near
    assert named(maps, told[1]) == {"other": "model/frozen"}
    assert not any(group.near for group in find_groups(maps, movement=Told(moving=[(0, 0), (0, 1)])))
    kept = find_groups(maps, movement=Told(trusted=[(0, 1)], moving=[(0, 0)]))  # a copy that was renewed just now
    assert named(maps, kept[0])["weight"] == "model/moving"
    assert kept[0].near


def test_fewer_arrays_than_moments_are_not_known_to_be_weights():
    """The biases are saved elsewhere; pixel_mean has their shape."""
    maps = [mapped("c.pt", ("model/a", (4, 4)), ("pixel_mean", (3,)), *adam(0, (4, 4)), *adam(1, (3,)), *adam(2, (3,)))]
    near = {named(maps, group).get("weight"): group.near for group in find_groups(maps)}
    assert near["model/a"]
    assert not near["pixel_mean"]


def test_a_weight_that_does_not_move_is_not_near():
    maps = [mapped("c.pt", ("model/a", (4, 4)), *adam(0, (4, 4)))]
    assert find_groups(maps)[0].near
    assert not find_groups(maps, movement=Told())[0].near
    assert find_groups(maps, movement=Told(moving=[(0, 0)]))[0].near


def test_running_statistics_are_no_weights():
    maps = [mapped("c.pt", ("model/norm.weight", (9,)), ("model/norm.running_mean", (9,)), *adam(0, (9,)))]
    groups = find_groups(maps)
    assert groups[0].near
    assert len(groups) == 1


def test_a_buffer_that_is_called_like_a_moment_is_none():
    maps = [mapped("c.pt", ("model/exp_avg", (4, 4)), ("model/optimal.weight", (4, 4)))]
    assert not any({"first", "second"} & set(group.members) for group in find_groups(maps))


@pytest.mark.parametrize(
    "state",
    [
        [("sum", (40, 30))],
        [("square_avg", (40, 30)), ("acc_delta", (40, 30))],
        [("exp_avg_sq_row", (40,)), ("exp_avg_sq_col", (30,)), ("RMS", ())],
        [("row_var", (40, 1)), ("col_var", (1, 30))],
        [("prev", (40, 30)), ("step_size", (40, 30))],
    ],
)
def test_other_optimisers_tell_which_weights_they_move_and_keep_their_state_exactly(state):
    arrays = [(f"optimizer/state/0/{leaf}", shape) for leaf, shape in state]
    maps = [mapped("c.pt", ("model/a", (40, 30)), ("model/mask", (40, 20)), *arrays)]
    groups = find_groups(maps)
    assert named(maps, groups[0]) == {"weight": "model/a"}
    assert groups[0].near
    assert not any(group.near for group in groups[1:])


def test_the_name_of_a_file_does_not_make_its_weights_copies():
    maps = [mapped("best-10.pt", ("model/a", (4, 4)), *adam(0, (4, 4)))]
    assert find_groups(maps)[0].near
