"""Made-up prompts with a picture, for every form in which hosts take pictures."""

from __future__ import annotations

import pytest
import torch

from lessen.architectures.samples import sample_inputs
from lessen.errors import InputError
from seeing_models import NAMES, PLACEHOLDER, VOCABULARY, seeing


@pytest.mark.parametrize("name", [*NAMES, "internvl", "mistral"])
def test_a_host_reads_them_and_sees_its_picture(name):
    model = seeing(name)
    made = sample_inputs(model, 3, 20, torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(**made).logits
        assert logits.shape == (3, 1, VOCABULARY)
        other = model(**made | {"pixel_values": -made["pixel_values"]}).logits
    assert (logits - other).abs().amax((1, 2)).min() > 1e-4  # in every row
    assert ((made["input_ids"] == PLACEHOLDER).sum(1) > 1).all()
    again = sample_inputs(model, 3, 20, torch.Generator().manual_seed(0))
    assert all(torch.equal(made[key], again[key]) for key in made)


def test_pictures_of_an_unknown_form_are_refused():
    model = seeing("llava")
    model.config.image_token_id = None
    with pytest.raises(InputError, match="reads pictures inside of a text"):
        sample_inputs(model, 2, 8, torch.Generator())
