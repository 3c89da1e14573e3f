from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lessen.errors import InputError
from lessen.tokens.regions import box_of, crop_resized, similar_patches
from lessen.tokens.scores import class_attention, class_similarity, received_attention


def test_similarity_is_the_cosine_and_ignores_lengths():
    x = torch.randn(2, 9, 6)
    wanted = F.cosine_similarity(x[:, :1].expand_as(x), x, dim=-1)
    assert torch.allclose(class_similarity(x), wanted, atol=1e-6)
    longer = x * torch.rand(2, 9, 1).add(0.5)
    assert torch.allclose(class_similarity(longer), wanted, atol=1e-5)
    best = similar_patches(x, 8, 3)
    assert torch.equal(best, wanted[:, 1:].topk(3).indices)
    with pytest.raises(InputError):
        similar_patches(x, 8, 9)


def test_one_row_equals_the_whole_attention():
    query, key, bias = torch.randn(2, 7, 3, 4), torch.randn(2, 7, 3, 4), torch.rand(2, 1, 1, 7)
    logits = query.transpose(1, 2) @ key.transpose(1, 2).transpose(-1, -2) / 2 + bias
    attention = logits.softmax(-1)
    assert torch.allclose(class_attention(query, key, bias), attention[:, :, 0].mean(1), atol=1e-6)
    assert torch.allclose(received_attention(query, key, bias), attention.mean((1, 2)), atol=1e-6)


def test_boxes_by_loop():
    patches = torch.tensor([[9, 14, 10], [5, 5, 5]])
    assert box_of(patches, (4, 4), 8).tolist() == [[16, 8, 32, 24], [8, 8, 16, 16]]
    # as published: ends at the corner of the last patch, unless one patch wide
    assert box_of(patches, (4, 4), 8, whole_last=False).tolist() == [[16, 8, 24, 16], [8, 8, 16, 16]]


def test_the_whole_box_is_the_whole_picture():
    images = torch.rand(2, 3, 32, 32)
    box = box_of(torch.tensor([[0, 15], [3, 12]]), (4, 4), 8)
    assert torch.allclose(crop_resized(images, box), images, atol=1e-5)


def test_a_crop_equals_slicing_and_interpolating():
    images = torch.rand(1, 3, 32, 32)
    box = torch.tensor([[8, 16, 24, 32]])
    wanted = F.interpolate(images[:, :, 8:24, 16:32], size=(32, 32), mode="bilinear", align_corners=True)
    assert torch.allclose(crop_resized(images, box), wanted, atol=1e-5)
