"""Codecs: bits are the bytes that are sent, what arrives is a picture, damaged bytes are one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lessen.codecs.pictures import decode_picture, encode_jpeg
from lessen.codecs.stored import JpegCodec
from lessen.data.textures import textures
from lessen.errors import DataError
from lessen.measure.record import measure_quality
from lessen.methods.codecs.jpeg import JPEG
from lessen.recipe import Recipe
from lessen.tasks.codecs.pictures import PicturesOptions, PicturesTask


@pytest.fixture(scope="module")
def task():
    return PicturesTask(PicturesOptions(pictures=6, side=32))


def test_bits_are_those_of_the_bytes_and_pictures_keep_their_shape():
    pictures = textures(3, 40, seed=1)
    coded = JpegCodec(60)(pictures)
    assert coded.pictures.shape == pictures.shape
    assert coded.pictures.dtype == torch.uint8
    assert coded.bits.tolist() == [8 * len(encode_jpeg(picture, 60)) for picture in pictures]


def test_pictures_are_the_same_for_a_seed_and_of_all_kinds():
    assert torch.equal(textures(4, 16, 2), textures(4, 16, 2))
    assert not torch.equal(textures(4, 16, 2), textures(4, 16, 3))
    assert textures(20, 16, 0).float().std() > 20


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_damaged_bytes_are_one_line(cut):
    raw = encode_jpeg(textures(1, 32, 0)[0], 80)
    with pytest.raises(DataError, match="no whole JPEG or PNG picture") as caught:
        decode_picture(raw[: cut if cut >= 0 else len(raw) // 2])
    assert "\n" not in str(caught.value)


def test_coarser_codecs_take_fewer_bits_and_lose_more(task):
    found = []
    for quality in (90, 50, 10):
        model, _ = Recipe([JPEG(quality=quality)]).apply(task.reference(), task)
        judged = measure_quality(task, model)
        found.append((task.costs(judged.outcomes)["bits_per_pixel"], judged.values["psnr"]))
    assert found == sorted(found, reverse=True)
    outcomes = task.outcomes(task.reference())
    mean = outcomes["squared_error"].sum() / outcomes["values"].sum()
    assert measure_quality(task, task.reference()).values["psnr"] == pytest.approx(-10 * np.log10(mean))


def test_encoding_and_decoding_are_timed_apart(task):
    model = task.reference()
    works = task.workloads(2)
    assert list(works) == ["encode", "decode"]
    raw = works["encode"].call(model, works["encode"].items[0])
    assert torch.equal(works["decode"].call(model, works["decode"].items[0]), decode_picture(raw))
