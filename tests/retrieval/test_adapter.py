"""Adapters between encoders: a turn is found exactly, what is more than a turn is found in few directions."""

from __future__ import annotations

import pytest
import torch

from lessen.errors import ArtifactError, DataError, NonFiniteError
from lessen.retrieval.adapter import QueryAdapter


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_turn_is_undone_exactly():
    old, turn = drawn(200, 16), torch.linalg.qr(drawn(16, 16, seed=1))[0]
    made = QueryAdapter.fitted(old @ turn, old, rank=0)
    torch.testing.assert_close(made(old @ turn), old, atol=1e-5, rtol=0)
    torch.testing.assert_close(made.turn @ made.turn.t(), torch.eye(16), atol=1e-5, rtol=0)


def test_a_change_in_few_directions_and_a_shift_are_found_beside_the_turn():
    new, turn = drawn(500, 16), torch.linalg.qr(drawn(16, 16, seed=1))[0]
    old = new @ turn + new @ drawn(16, 2, seed=2) @ drawn(2, 16, seed=3) * 0.3 + 0.5
    errors = [float((QueryAdapter.fitted(new, old, rank)(new) - old).norm() / old.norm()) for rank in (0, 1, 2)]
    assert errors[0] > errors[1] > 0.05
    fresh = drawn(50, 16, seed=9)
    wanted = fresh @ turn + fresh @ drawn(16, 2, seed=2) @ drawn(2, 16, seed=3) * 0.3 + 0.5
    whole = QueryAdapter.fitted(new, old, 16)
    assert float((whole(fresh) - wanted).norm() / wanted.norm()) < 0.01


def test_noise_alone_is_not_learned():
    old, noise = drawn(60, 24), drawn(60, 24, seed=1)
    turn_only = QueryAdapter.fitted(old + 0.5 * noise, old, rank=0)
    both = QueryAdapter.fitted(old + 0.5 * noise, old, rank=24)
    fresh, more = drawn(400, 24, seed=5), drawn(400, 24, seed=6)
    errors = [float((one(fresh + 0.5 * more) - fresh).norm()) for one in (turn_only, both)]
    assert errors[1] < 1.1 * errors[0]


@pytest.mark.parametrize(("new", "old"), [(12, 16), (16, 12)])
def test_widths_may_differ(new, old):
    made = QueryAdapter.fitted(drawn(100, new), drawn(100, old, seed=1), 3)
    assert made(drawn(2, new)).shape == (2, old)
    made.check()


def test_a_file_carries_both_encoders(tmp_path):
    made = QueryAdapter.fitted(drawn(50, 8), drawn(50, 8, seed=1), 2)
    made.save(tmp_path / "a.safetensors", {"digest": "n"}, {"digest": "o"})
    again, new, old = QueryAdapter.load(tmp_path / "a.safetensors")
    assert (new, old) == ({"digest": "n"}, {"digest": "o"})
    assert torch.equal(again(drawn(3, 8)), made(drawn(3, 8)))
    raw = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(raw[:-40])
    with pytest.raises(ArtifactError, match="is no adapter"):
        QueryAdapter.load(tmp_path / "torn.safetensors")


def test_bad_pairs():
    with pytest.raises(DataError, match="do not belong together"):
        QueryAdapter.fitted(drawn(30, 4), drawn(31, 4))
    with pytest.raises(DataError, match="19 pairs are too few"):
        QueryAdapter.fitted(drawn(19, 4), drawn(19, 4))
    with pytest.raises(NonFiniteError):
        QueryAdapter.fitted(drawn(30, 4).fill_(float("nan")), drawn(30, 4))
