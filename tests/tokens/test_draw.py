from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lessen.errors import InputError
from lessen.tokens import Keep, Merge, reduce_tokens
from lessen.tokens.draw import draw, panel, trace
from towers import IMAGES, build


def test_the_trace_has_the_groups_of_every_block():
    patch = reduce_tokens(build("plain"), Merge(removed=(0, 6, 6, 6)))
    groups = trace(patch, IMAGES)
    assert groups[0] is None
    assert [len(set(group[0].tolist())) for group in groups[1:]] == [59, 53, 47]
    assert not any(block._forward_hooks for block in patch.tower.blocks)


def test_groups_are_filled_with_their_mean_and_outlined():
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    picture[:4] = 200
    out = panel(picture, np.array([[0, 1], [0, -1]]), 4)
    assert out[1, 1].tolist() == [100, 100, 100]  # half 200, half 0
    assert out[1, 6].tolist() == [200, 200, 200]
    assert out[6, 6].tolist() == [0, 0, 0]  # dropped
    assert out[1, 4].tolist() == [255, 255, 255]  # border between the groups


def test_the_sheet_has_a_panel_for_each_block():
    patch = reduce_tokens(build("plain"), Keep(rates=(1.0, 0.5, 1.0, 0.5), fuse=False))
    groups = trace(patch, IMAGES)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    raw = draw(image, groups, (8, 8), 1, side=8)
    with Image.open(io.BytesIO(raw)) as sheet:
        assert sheet.width == 5 * (64 + 6) + 6
        pixels = np.asarray(sheet.convert("RGB"))
    last = pixels[20:84, 6 + 4 * 70 : 6 + 4 * 70 + 64]
    assert (last == 0).all(-1).mean() > 0.6  # three quarters of the patches are dropped
    with pytest.raises(InputError, match="no 4x4 grid"):
        draw(image, groups, (4, 4), 1)
