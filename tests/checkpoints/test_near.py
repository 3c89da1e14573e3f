from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.checkpoints import near, quantisers
from lessen.checkpoints.near import NearSettings, Triple
from lessen.errors import ArtifactError

few = settings(max_examples=40, deadline=None)


def adam_triple(rows=200, columns=96, seed=0) -> tuple[Triple, np.ndarray]:
    """A weight with moments as Adam leaves them, and the weight one step earlier."""
    random = np.random.default_rng(seed)
    scale = np.exp(random.normal(0, 1, (rows, 1)) + random.normal(0, 0.5, (1, columns))).astype(np.float32)
    second = (1e-10 * scale**2 * np.exp(random.normal(0, 1, (rows, columns)))).astype(np.float32)
    first = (0.3 * np.sqrt(second) * random.normal(0, 1, second.shape)).astype(np.float32)
    before = random.normal(0, 0.02, second.shape).astype(np.float32)
    return Triple(before + random.normal(0, 1e-3, second.shape).astype(np.float32), first, second), before


def pieces(seed: int, rows: int, columns: int) -> tuple[Triple, np.ndarray]:
    now, before = adam_triple(rows, columns, seed)
    return now, before


RULES = ["adaptive", "tensor", "element"]


# -- quantisers ------------------------------------------------------------------------------------------------
def test_cells_follow_the_closed_form():
    x = np.array([[-3.0, -0.64, 0.0, 0.64, 0.66, 1.64, 1.66, 9.0]], np.float32)
    codes, book = quantisers.cells(x, 1.0, 0.65, 5)
    # a value belongs to level floor(|x| / width + 1 - dead zone), at most 2 of the 5 levels a side
    assert codes.tolist() == [[4, 0, 0, 0, 1, 1, 3, 3]]
    assert book[1] == pytest.approx((0.66 + 1.64) / 2)
    assert book[3] == pytest.approx((1.66 + 9) / 2)
    assert book[4] == -3
    assert book[0] == 0


@few
@given(st.integers(0, 999), st.sampled_from([3, 7, 15]), st.integers(2000, 4000))
def test_kmeans_is_as_good_as_scikit_learn(seed, levels, count):
    cluster = pytest.importorskip("sklearn.cluster", reason="scikit-learn is not installed")
    random = np.random.default_rng(seed)
    values = np.sort(random.laplace(0, 1, count)).astype(np.float32)
    codes, book = quantisers.kmeans(values, np.ones(count, bool), levels)
    ours = float(((values - book[codes]) ** 2).sum())
    if np.unique(values).size <= levels:
        assert ours == 0
        return
    start = np.quantile(values, (np.arange(levels) + 0.5) / levels).reshape(-1, 1)
    peer = cluster.KMeans(levels, init=start, n_init=1, max_iter=25).fit(values.reshape(-1, 1))
    assert ours <= 1.05 * peer.inertia_ + 1e-9


def test_kmeans_of_few_values_is_exact():
    values = np.random.default_rng(0).choice([-2.5, 0.125, 7.0, 3e-12], 5000).astype(np.float32)
    codes, book = quantisers.kmeans(values, np.ones(5000, bool), 15)
    assert np.array_equal(book[codes], values)


@few
@given(st.integers(0, 99), st.integers(0, 3000), st.integers(1, 256), st.floats(0, 1))
def test_codes_come_back_as_values(seed, count, size, zeros):
    random = np.random.default_rng(seed)
    codes = random.integers(0, size, count).astype(np.uint8)
    codes[random.random(count) < zeros] = 0
    book = random.normal(0, 1, size).astype(np.float32)
    assert np.array_equal(quantisers.decode_values(quantisers.encode_codes(codes, book), count), book[codes])


def test_a_level_outside_the_codebook_is_refused():
    blob = quantisers.encode_codes(np.full(100, 3, np.uint8), np.zeros(2, np.float32))
    with pytest.raises(ArtifactError, match="lacks"):
        quantisers.decode_values(blob, 100)


# -- weight and moments ------------------------------------------------------------------------------------------
@few
@given(
    st.integers(0, 99),
    st.integers(1, 70),
    st.integers(1, 120),
    st.sampled_from(RULES),
    st.booleans(),
    st.sampled_from(["both", "first", "none"]),
    st.sampled_from([2, 4, 8]),
)
def test_decoding_gives_what_encoding_said_it_would(seed, rows, columns, rule, key, moments, bits):
    now, before = pieces(seed, rows, columns)
    if moments != "both":
        now.second = None
    if moments == "none":
        now.first = None
    reference = None if key else before
    blob, told, _ = near.encode(now, reference, NearSettings(rule=rule, bits=bits))
    back = near.decode(blob, reference, (rows, columns))
    for one, other in [(back.weight, told.weight), (back.first, told.first), (back.second, told.second)]:
        assert (one is None) == (other is None)
        if one is not None:
            assert np.array_equal(one.view(np.uint32), other.view(np.uint32))
    alone = near.decode(blob, reference, (rows, columns), near.Need.WEIGHT)
    assert np.array_equal(alone.weight, told.weight)
    assert alone.first is None


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_residual_has_at_most_two_to_the_b_values(rule, bits):
    if rule == "adaptive" and bits == 1:
        with pytest.raises(ValueError, match="bits >= 2"):
            NearSettings(rule=rule, bits=bits)
        return
    now, before = adam_triple()
    reference = np.zeros_like(before)  # so that the rebuilt weight is the rebuilt residual
    _, back, _ = near.encode(now, reference, NearSettings(rule=rule, bits=bits))
    assert np.unique(back.weight).size <= 2**bits


@pytest.mark.parametrize("rule", ["tensor", "element"])
def test_moments_live_where_the_weight_residual_does(rule):
    now, before = adam_triple()
    _, back, _ = near.encode(now, before, NearSettings(rule=rule))
    kept = back.weight != before
    assert 0.02 < kept.mean() < 0.5
    assert not (back.first[~kept]).any()
    floor = np.median(now.second)
    moved = back.second != np.float32(floor)
    assert np.array_equal(moved | (back.first != 0), back.first != 0)


def test_thresholds_are_those_of_the_paper_and_of_the_code():
    now, before = adam_triple()
    residual = now.weight - before
    median = float(np.median(np.abs(residual)))
    mean = float(now.second.mean())
    tensor = near.weight_threshold(residual, now.second, NearSettings(rule="tensor", alpha=1e-5))
    assert tensor == pytest.approx(min(2.5, 1e-5 / np.sqrt(mean)) * median, rel=1e-5)
    element = near.weight_threshold(residual, now.second, NearSettings(rule="element", alpha=1e-5))
    assert np.allclose(element, np.minimum(2.5, 1e-5 / np.sqrt(now.second)) * median, rtol=1e-4)
    scaled = near.weight_threshold(residual, now.second, NearSettings(rule="tensor"))
    assert scaled == pytest.approx(2.5 * median, rel=1e-5)


def test_a_table_of_which_few_rows_moved_still_has_a_threshold():
    residual = np.zeros((100, 8), np.float32)
    residual[:5] = np.random.default_rng(0).normal(0, 1, (5, 8))
    assert near.weight_threshold(residual, None, NearSettings(rule="tensor")) > 1


@pytest.mark.parametrize("rule", ["tensor", "element"])
def test_without_pruning_and_with_few_values_it_is_exact(rule):
    random = np.random.default_rng(0)
    before = np.zeros((40, 50), np.float32)
    now = Triple(
        random.choice(np.linspace(-1, 1, 201).astype(np.float32), before.shape),
        random.choice([-2.0, 3.0], before.shape).astype(np.float32),
        random.choice([1e-12, 4e-9], before.shape).astype(np.float32),
    )
    now.weight[now.weight == 0] = 0.5
    _, back, _ = near.encode(now, before, NearSettings(rule=rule, alpha=0, beta=0, bits=8))
    assert np.array_equal(back.weight, now.weight)
    assert np.array_equal(back.first, now.first)
    assert np.array_equal(back.second, now.second)  # float32 centroids: 1e-12 does not become 0


# -- what a resume needs -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_adams_first_step_after_resume_is_sane(rule, beta2):
    """The step with the rebuilt second moment stays near the true one: no division by nearly nothing."""
    now, before = adam_triple()
    _, back, _ = near.encode(now, before, NearSettings(rule=rule))
    gradient = np.sqrt(now.second)
    true = 0.1 * gradient / np.sqrt(beta2 * now.second + (1 - beta2) * gradient**2)
    rebuilt = 0.1 * gradient / np.sqrt(beta2 * back.second + (1 - beta2) * gradient**2)
    growth = rebuilt / true
    assert np.median(growth) < 2
    if rule == "adaptive":
        assert growth.max() < 4
    half = near.Triple(now.weight, now.first, now.second.astype(np.float16).astype(np.float32))
    broken = 0.1 * gradient / np.sqrt(beta2 * half.second + (1 - beta2) * gradient**2) / true
    assert np.median(broken) > (3 if beta2 == 0.95 else 20)  # what half-precision codebooks do


def test_second_moments_are_never_zero_unless_they_were():
    now, before = adam_triple()
    now.second[::3] = 0
    _, back, _ = near.encode(now, before, NearSettings())
    assert np.array_equal(back.second == 0, now.second == 0)
    assert not back.first[::3].any()


def test_second_moments_keep_their_octave():
    now, before = adam_triple()
    _, back, _ = near.encode(now, before, NearSettings(second_octaves=1))
    off = np.abs(np.log2(back.second / now.second))
    assert np.quantile(off, 0.99) < 1


def test_second_moments_against_the_step_before_are_finer_and_their_errors_do_not_add_up():
    random = np.random.default_rng(0)
    now, _ = adam_triple()
    settings, before, weight, errors = NearSettings(second_step=0.5), None, None, []
    for _ in range(12):
        blob, told, linked = near.encode(now, weight, settings, before)
        assert linked == (before is not None)
        back = near.decode(blob, weight, now.weight.shape, near.Need.SECOND, before)
        assert np.array_equal(back.second, told.second)
        assert back.first is None
        errors.append(float(np.sqrt(np.mean(np.log2(told.second / now.second) ** 2))))
        before, weight = told.second, told.weight
        grown = now.second * np.float32(0.96) * np.exp2(random.normal(0, 0.1, now.second.shape))
        now = Triple(now.weight, now.first, grown.astype(np.float32))
    assert max(errors) < 0.25  # octaves
    _, coarse, _ = near.encode(now, weight, NearSettings(), before)
    assert np.sqrt(np.mean(np.log2(coarse.second / now.second) ** 2)) > 2 * max(errors)


def test_second_moments_that_were_zero_are_coded_on_their_own():
    now, before = adam_triple()
    known = now.second.copy()
    known[0, 0] = 0
    _, back, linked = near.encode(now, before, NearSettings(second_step=0.5), known)
    assert not linked
    assert np.array_equal(back.second > 0, now.second > 0)


def test_errors_do_not_add_up_along_a_series():
    random = np.random.default_rng(0)
    weight = random.normal(0, 0.02, (128, 128)).astype(np.float32)
    rebuilt = weight.copy()
    errors = []
    for _ in range(25):
        weight = weight + random.normal(0, 1e-3, weight.shape).astype(np.float32)
        _, back, _ = near.encode(Triple(weight), rebuilt, NearSettings())
        rebuilt = back.weight
        errors.append(float(np.sqrt(np.mean((rebuilt - weight) ** 2))))
    assert max(errors[10:]) < 1.1 * max(errors[3:10])
    assert errors[-1] < 1e-3


def test_a_key_frame_is_fine():
    now, _ = adam_triple()
    _, back, _ = near.encode(now, None, NearSettings())
    error = np.sqrt(np.mean((back.weight - now.weight) ** 2)) / now.weight.std()
    assert error == pytest.approx(1 / (256 * np.sqrt(12)), rel=0.05)


def test_small_arrays_are_kept_finer():
    random = np.random.default_rng(0)
    bias, before = random.normal(0, 1, (1, 300)).astype(np.float32), np.zeros((1, 300), np.float32)
    _, back, _ = near.encode(Triple(bias), before, NearSettings())
    big = random.normal(0, 1, (100, 300)).astype(np.float32)
    _, coarse, _ = near.encode(Triple(big), np.zeros_like(big), NearSettings())
    assert np.std(back.weight - bias) < 0.5 * np.std(coarse.weight - big)


def test_numbers_too_large_to_square_survive():
    weight = np.random.default_rng(0).normal(0, 1e25, (80, 90)).astype(np.float32)
    _, back, _ = near.encode(Triple(weight), None, NearSettings())
    assert np.abs(back.weight.astype(np.float64) - weight).max() < 0.01 * weight.std(dtype=np.float64)


def test_settings_out_of_range_are_refused():
    for wrong in [{"bits": 0}, {"bits": 9}, {"step": 0}, {"dead_zone": 1}, {"alpha": -1}, {"rule": "best"}, {"x": 1}]:
        with pytest.raises(ValueError):
            NearSettings(**wrong)
