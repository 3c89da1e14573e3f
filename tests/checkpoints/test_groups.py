from __future__ import annotations

from lessen.checkpoints.groups import find_groups, natural, pieces
from lessen.checkpoints.images import Array, Image


def image(path: str, *arrays: tuple[str, tuple[int, ...]], kind: str = "F32", container: str = "torch") -> Image:
    made, at = [], 0
    for name, shape in arrays:
        count = 4
        for size in shape:
            count *= size
        made.append(Array(name, kind, shape, at, count))
        at += count
    return Image(path, at, tuple(made), container)


def named(images, group):
    return {role: images[i].arrays[j].name for role, (i, j) in group.members.items()}


def adam(index: int, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"optimizer/state/{index}/{leaf}", shape) for leaf in ("step", "exp_avg", "exp_avg_sq")][1:]


def test_moments_find_their_weights_by_shape_and_order():
    images = [
        image("c.pt", ("model/a", (4, 4)), ("model/b", (3,)), ("model/c", (4, 4)), *adam(0, (4, 4)), *adam(1, (3,)), *adam(2, (4, 4)))
    ]  # fmt: skip
    groups = [named(images, group) for group in find_groups(images)]
    assert groups[0] == {
        "weight": "model/a",
        "first": "optimizer/state/0/exp_avg",
        "second": "optimizer/state/0/exp_avg_sq",
    }
    assert groups[1]["weight"] == "model/b"
    assert groups[2]["weight"] == "model/c"
    assert len(groups) == 3


def test_moments_of_our_own_lazy_adam_are_known_and_a_layer_named_first_is_no_moment():
    table = [("optimizer/1.0.first", (9, 4)), ("optimizer/1.0.second", (9, 4)), ("optimizer/1.0.last", (9,))]
    images = [image("state.safetensors", ("model/first", (9, 4)), *table, container="safetensors")]
    groups = [named(images, group) for group in find_groups(images)]
    assert groups[0] == {
        "weight": "model/first",
        "first": "optimizer/1.0.first",
        "second": "optimizer/1.0.second",
    }
    assert {"other": "optimizer/1.0.last"} in groups


def test_every_array_is_in_exactly_one_group():
    images = [image("c.pt", ("model/a", (4, 4)), ("ema/a", (4, 4)), ("rng", (9,)), *adam(0, (4, 4)), *adam(1, (5,)))]
    places = [place for group in find_groups(images) for place in group.members.values()]
    assert sorted(places) == [(0, j) for j in range(len(images[0].arrays))]


def test_moments_without_a_weight_are_kept_exactly():
    images = [image("c.pt", ("model/a", (4, 4)), *adam(0, (5,)))]
    assert not any(group.near for group in find_groups(images))


def test_copies_of_the_model_are_not_taken_for_it():
    images = [image("c.pt", ("best/a", (4, 4)), ("ema_model/a", (4, 4)), ("model/a", (4, 4)), *adam(0, (4, 4)))]
    assert named(images, find_groups(images)[0])["weight"] == "model/a"


def test_optimisers_that_know_names_are_believed():
    images = [
        image(
            "c.pt", ("model/a", (4, 4)), ("model/b", (4, 4)),
            ("optimizer/state/b/exp_avg", (4, 4)), ("optimizer/state/a/exp_avg", (4, 4)),
        )
    ]  # fmt: skip
    pairs = {named(images, group)["weight"]: named(images, group).get("first") for group in find_groups(images)}
    assert pairs == {"model/a": "optimizer/state/a/exp_avg", "model/b": "optimizer/state/b/exp_avg"}


def test_weights_and_optimiser_may_be_in_different_files_and_shards():
    images = [
        image("model-00001-of-00002.safetensors", ("layers.10.w", (4, 4)), ("layers.2.w", (4, 4)), container="safetensors"),
        image("model-00002-of-00002.safetensors", ("head", (6, 4)), container="safetensors"),
        image("optimizer.pt", *[("state/" + n.removeprefix("optimizer/state/"), s) for k, shape in enumerate([(4, 4), (4, 4), (6, 4)]) for n, s in adam(k, shape)]),
    ]  # fmt: skip
    weights = [named(images, group).get("weight") for group in find_groups(images)]
    assert weights == ["layers.2.w", "layers.10.w", "head"]


def test_momentum_counts_as_a_first_moment():
    images = [image("c.pt", ("model/a", (4, 4)), ("optimizer/state/0/momentum_buffer", (4, 4)))]
    group = find_groups(images)[0]
    assert set(group.members) == {"weight", "first"}
    assert group.near


def test_our_own_loop_joins_names_with_a_dot():
    images = [
        image("c.safetensors", ("model/a", (4, 4)), ("optimizer/0.exp_avg", (4, 4)), ("optimizer/0.exp_avg_sq", (4, 4)))
    ]
    assert set(find_groups(images)[0].members) == {"weight", "first", "second"}


def test_weights_alone_count_only_when_asked():
    images = [image("c.safetensors", ("a", (4, 4)), ("b", (2,)))]
    assert not any(group.near for group in find_groups(images))
    assert all(group.near for group in find_groups(images, weights_alone=True))


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
    images = [image("c.pt", ("model/frozen", (64, 64)), ("model/moving", (64, 64)), *adam(0, (64, 64)))]
    groups = find_groups(images)
    assert groups[0].unsure
    assert not any(group.near for group in groups)
    told = find_groups(images, still={(0, 0)})
    assert named(images, told[0])["weight"] == "model/moving"
    assert told[0].near
    assert not told[0].unsure


def test_running_statistics_are_no_weights():
    images = [image("c.pt", ("model/norm.weight", (9,)), ("model/norm.running_mean", (9,)), *adam(0, (9,)))]
    groups = find_groups(images)
    assert groups[0].near
    assert named(images, groups[1]) == {"other": "model/norm.running_mean"}
