"""What models return, and which tensor of it is judged."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from lessen.errors import TaskError
from lessen.task import call_model


@dataclass
class Named:
    hidden: Tensor
    logits: Tensor | None = None


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x, **_):
        return self.make(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: (x,),
        lambda x: [x, None],
        lambda x: {"anything": x},
        lambda x: Named(x),
        lambda x: Named(x + 1, x),
        lambda x: {"last_hidden_state": x + 1, "logits": x, "loss": x.sum()},
    ],
)
@pytest.mark.parametrize("given", ["tensor", "tuple", "mapping"])
def test_one_tensor_or_one_with_a_known_name_is_taken(make, given):
    x = torch.arange(3.0)
    inputs = {"tensor": x, "tuple": (x,), "mapping": {"x": x}}[given]
    assert torch.equal(call_model(Returns(make), inputs), x)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: (x, x), r"Returns returned a tuple with the tensors 0, 1.*override Task.forward"),
        (lambda x: {"scores": x, "gates": x}, "a dict with the tensors scores, gates"),
        (lambda x: 3.0, "a float, and none says"),
        (lambda x: None, "a NoneType, and none says"),
    ],
)
def test_a_choice_between_tensors_is_the_users(make, said):
    with pytest.raises(TaskError, match=said):
        call_model(Returns(make), torch.zeros(2))


def test_hugging_face_outputs_are_read():
    pytest.importorskip("transformers")
    from host_models import answer, host, inputs

    for name in ("llama", "bert", "clip", "t5", "dinov2"):
        model, given = host(name), inputs(name)
        with torch.no_grad():
            assert torch.equal(call_model(model, given), answer(model, given))
