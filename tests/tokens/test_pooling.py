from __future__ import annotations

import math

import pytest
import torch

from lessen.errors import InputError
from lessen.tokens.pooling import closest_grid, pool_features


def by_window(x, grid, target):
    out = []
    for i in range(target[0]):
        rows = range(math.floor(i * grid[0] / target[0]), math.ceil((i + 1) * grid[0] / target[0]))
        for j in range(target[1]):
            columns = range(math.floor(j * grid[1] / target[1]), math.ceil((j + 1) * grid[1] / target[1]))
            out.append(torch.stack([x[:, r * grid[1] + c] for r in rows for c in columns]).mean(0))
    return torch.stack(out, 1)


@pytest.mark.parametrize(
    ("grid", "target"), [((27, 27), (12, 12)), ((24, 24), (10, 10)), ((16, 16), (7, 7)), ((6, 10), (4, 3))]
)
def test_windows_equal_the_loop(grid, target):
    x = torch.randn(2, grid[0] * grid[1], 3)
    assert torch.allclose(pool_features(x, grid, target), by_window(x, grid, target), atol=1e-5)


def test_identity_orientation_and_leading_tokens():
    x = torch.randn(2, 25, 3)
    assert torch.allclose(pool_features(x, (5, 5), (5, 5)), x)
    hot = torch.zeros(1, 16, 1)
    hot[0, 3] = 1.0  # patch (0, 3)
    assert pool_features(hot, (4, 4), (2, 2)).flatten().tolist() == [0.0, 0.25, 0.0, 0.0]
    led = torch.cat([torch.full((2, 2, 3), 9.0), x], 1)
    pooled = pool_features(led, (5, 5), (2, 2), protected=2)
    assert pooled.shape == (2, 6, 3)
    assert (pooled[:, :2] == 9.0).all()


def test_bad_grids():
    with pytest.raises(InputError, match="are not 0 leading tokens and a 4x4 grid"):
        pool_features(torch.zeros(1, 17, 2), (4, 4), (2, 2))
    with pytest.raises(InputError, match="choose a smaller grid"):
        pool_features(torch.zeros(1, 16, 2), (4, 4), (5, 2))
    with pytest.raises(InputError):
        closest_grid((4, 4), 0)


@pytest.mark.parametrize(
    ("grid", "budget", "wanted"), [((24, 24), 144, (12, 12)), ((27, 27), 81, (9, 9)), ((8, 16), 32, (4, 8))]
)
def test_the_shape_of_the_grid_is_kept(grid, budget, wanted):
    assert closest_grid(grid, budget) == wanted
