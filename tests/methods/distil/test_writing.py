"""Which places count, and what a student writes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.errors import TaskError
from lessen.methods.distil._shared.divergences import divergence
from lessen.methods.distil._shared.places import Places, places, written
from lessen.methods.distil._shared.writing import Memory, Writer, worst
from soft import kl, softmax
from words import Words


def test_the_judged_places_are_those_of_the_labels() -> None:
    task = Words()
    batch = next(iter(task.batches("train")))
    seen = places(task, batch)
    # labels 3 ... 9 are judged at places 2 ... 8; every second row ends at token 7
    assert seen.judged.sum(dim=1).tolist() == [5, 7, 5, 7, 5, 7]
    for row, place in torch.nonzero(seen.judged).tolist():
        assert int(seen.following[row, place]) == int(batch[0]["input_ids"][row, place + 1])
    shifted = task.view(target=lambda b: torch.cat([b[1][:, 1:], torch.full_like(b[1][:, :1], -100)], dim=1))
    again = places(shifted, batch)
    assert torch.equal(again.judged, seen.judged)
    assert torch.equal(again.following[again.judged], seen.following[seen.judged])
    bare = task.view(target=lambda b: b[1][:, 0])  # no labels of the tokens' shape: what the mask lets through
    assert places(bare, batch).judged.sum(dim=1).tolist() == [7, 9, 7, 9, 7, 9]
    nothing = (batch[0], torch.full_like(batch[1], -100))
    with pytest.raises(TaskError, match="gives a batch in which no token is judged"):
        places(task, nothing)
    with pytest.raises(TaskError, match="does not give sequences of tokens"):
        places(task.view(inputs=lambda b: torch.zeros(2, 3)), batch)


def test_padding_and_prompts_do_not_reach_the_loss() -> None:
    task = Words()
    seen = places(task, next(iter(task.batches("train"))))
    generator = torch.Generator().manual_seed(0)
    own, wanted = (torch.randn(6, 10, 24, generator=generator) for _ in range(2))
    one = divergence(seen.rows(own), seen.rows(wanted), "forward").mean()
    own[~seen.judged] += 100 * torch.randn(24)
    assert float(divergence(seen.rows(own), seen.rows(wanted), "forward").mean()) == float(one)


def test_a_written_row_keeps_its_prompt_and_ends_at_the_end() -> None:
    task = Words()
    torch.manual_seed(0)
    model = task.build()
    batch = next(iter(task.batches("train")))
    writer = Writer(task, None, 0.0, torch.Generator().manual_seed(0))
    assert writer.start(batch) == 3
    made, seen = writer.write(model, batch)
    ids = made[0]["input_ids"]
    assert torch.equal(ids[:, :3], batch[0]["input_ids"][:, :3])
    assert not torch.equal(ids, batch[0]["input_ids"])
    with torch.no_grad():  # with keys and values kept, each word is the likeliest after the ones before it
        whole = model(input_ids=ids).logits.argmax(dim=2)
    for row, place in torch.nonzero(seen.judged).tolist():
        assert int(whole[row, place]) == int(ids[row, place + 1])
    ended = ids == 1
    for row in range(len(ids)):
        known = made[0]["attention_mask"][row].bool()
        assert int((ended[row] & known)[3:].sum()) <= 1
        judged = made[1][row] != -100
        assert torch.equal(judged[1:], seen.judged[row, :-1])
        assert torch.equal(made[1][row][judged], ids[row][judged])
    assert model.training is False
    left = ({**batch[0], "attention_mask": batch[0]["attention_mask"].flip(1)}, batch[1])
    with pytest.raises(TaskError, match="padded on the left"):
        writer.start(left)
    with pytest.raises(TaskError, match="leaves nothing to write"):
        Writer(task.view(inputs=lambda b: b[0]["input_ids"]), 10, 0.0, torch.Generator()).start(batch)


def test_a_plain_model_writes_what_one_with_states_writes() -> None:
    task = Words()
    model = task.build()
    batch = next(iter(task.batches("train")))

    class Bare(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, ids: Tensor) -> Tensor:
            return self.inner(input_ids=ids).logits

    one, _ = Writer(task, 4, 0.7, torch.Generator().manual_seed(3)).write(model, batch)
    other, _ = Writer(task, 4, 0.7, torch.Generator().manual_seed(3)).write(Bare(model), batch)
    assert float((one[0]["input_ids"][:, :9] == other[0]["input_ids"][:, :9]).float().mean()) > 0.8


def test_the_worst_word_is_put_right_and_the_rest_written_anew() -> None:
    task = Words()
    torch.manual_seed(1)
    student, teacher = task.build(), task.build()
    batch = next(iter(task.batches("train")))
    writer = Writer(task, 3, 0.0, torch.Generator().manual_seed(0))
    made, seen = writer.write(student, batch)
    with torch.no_grad():
        own, wanted = (task.forward(model, made) for model in (student, teacher))
    fixed, after, where = writer.corrected(student, made, seen, own, wanted)
    old, new = made[0]["input_ids"], fixed[0]["input_ids"]
    assert bool((where > 0).any())
    for row, place in enumerate(where.tolist()):
        if place < 0:
            assert torch.equal(old[row], new[row])
            continue
        gaps = [
            (kl(softmax(wanted[row, t].tolist()), softmax(own[row, t].tolist())), t)
            for t in range(10)
            if bool(seen.judged[row, t]) and int(wanted[row, t].argmax()) != int(old[row, t + 1])
        ]
        assert max(gaps)[1] == place - 1
        assert torch.equal(old[row, :place], new[row, :place])
        assert int(new[row, place]) == int(wanted[row, place - 1].argmax()) != int(old[row, place])
        ends = (new[row, 3:] == 1).nonzero()
        last = 3 + int(ends[0]) if len(ends) else 9
        assert after.judged[row].nonzero()[:, 0].tolist() == list(range(2, last))
    same, _, none = writer.corrected(student, made, seen, wanted, F.one_hot(torch.roll(old, -1, 1), 24).float() * 9)
    assert none.tolist() == [-1] * 6
    assert torch.equal(same[0]["input_ids"], old)


def test_the_worst_of_two_classes_by_hand() -> None:
    seen = Places(torch.tensor([[0, 0, 1]]), torch.tensor([[True, True, True]]))
    teacher = torch.tensor([[[0.0, 2.0], [0.0, 1.0], [0.0, 5.0]]])  # says 1, 1, 1: places 0 and 1 differ
    student = torch.zeros(1, 3, 2)
    gaps = [kl(softmax(row), [0.5, 0.5]) for row in teacher[0].tolist()]
    assert gaps[2] > gaps[0] > gaps[1]
    assert worst(seen, student, teacher).tolist() == [0]


def test_the_memory_gives_back_what_it_was_given() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = Places(torch.zeros(1, 1), torch.ones(1, 1))
    memory = Memory(2, 0.5, generator)
    assert memory.recall() is None
    for number in range(3):
        memory.keep(number, seen)
    assert [batch for batch, _ in memory.kept] == [1, 2]
    found = [memory.recall() for _ in range(200)]
    assert 60 < sum(one is None for one in found) < 140
    assert {one[0] for one in found if one is not None} == {1, 2}
    empty = Memory(0, 0.0, generator)
    empty.keep(1, seen)
    assert empty.recall() is None


def test_batches_without_their_tokens_cannot_be_rewritten() -> None:
    task = Words().view(inputs=lambda b: {"input_ids": b[0]["input_ids"] + 0})
    batch = next(iter(task.batches("train")))
    with pytest.raises(TaskError, match="makes its tokens anew at each call"):
        written(task, batch, torch.zeros(6, 10, dtype=torch.int64), torch.ones(6), torch.ones(6, 10, dtype=torch.bool))
