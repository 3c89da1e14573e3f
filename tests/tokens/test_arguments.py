from __future__ import annotations

import pytest
import torch

from lessen.errors import InputError
from lessen.tokens import Keep, Merge, reduce_tokens
from lessen.tokens.arguments import require_only_tokens, required_arguments
from towers import IMAGES, MaskedViT, TimmStyleBlock, TimmStyleViT, build, output

NONE = Merge(removed=(0,) * 4)


class SharedPositions(TimmStyleBlock):
    def forward(self, x, shared_rel_pos=None, is_causal=False):
        return super().forward(x, attn_mask=shared_rel_pos)


def test_a_causal_mask_is_refused_by_name_with_nothing_reduced():
    torch.manual_seed(0)
    model = MaskedViT().eval()
    before = output(model)
    patch = reduce_tokens(model, NONE, example=IMAGES)
    mask = torch.ones(3, 1, 65, 65, dtype=torch.bool).tril()
    with pytest.raises(InputError, match="TimmStyleBlock was handed a mask that hides other keys from some tokens"):
        model(IMAGES, attn_mask=mask)
    with torch.no_grad():
        assert torch.equal(model(IMAGES, attn_mask=None), before)
    patch.remove()
    with pytest.raises(InputError, match="handed a mask"):  # the check of the whole model runs the masked input
        reduce_tokens(model, NONE, example={"images": IMAGES, "attn_mask": mask})
    assert not any("forward" in block.__dict__ for block in model.blocks)


def test_positions_and_causality_are_refused_by_name():
    torch.manual_seed(0)
    model = MaskedViT().eval()
    for number in range(4):
        model.blocks[number] = SharedPositions().eval()
    patch = reduce_tokens(model, NONE)
    for handed in ({"shared_rel_pos": torch.zeros(1, 1, 65, 65)}, {"is_causal": True}):
        with pytest.raises(InputError, match=f"handed {next(iter(handed))}"):
            model(IMAGES, **handed)
    with pytest.raises(InputError, match="handed shared_rel_pos"):
        patch.tower.blocks[0](torch.randn(1, 9, 48), torch.zeros(1, 1, 9, 9))  # by position
    model(IMAGES, shared_rel_pos=None, is_causal=False)


def test_a_causal_text_tower_is_refused_when_it_runs():
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 96}
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**shape, vocab_size=99)).eval()
    ids = torch.randint(0, 90, (2, 20))
    patch = reduce_tokens(model, NONE)
    with pytest.raises(InputError, match="CLIPEncoderLayer was handed"):
        model(input_ids=ids)
    patch.remove()
    with pytest.raises(InputError, match="CLIPEncoderLayer was handed"):
        reduce_tokens(model, NONE, example={"input_ids": ids})


def test_the_check_of_blocks_needs_no_example():
    """A block that does more than its names say, and one whose attention lets sizes go by."""

    class Doubled(TimmStyleBlock):
        def forward(self, x, attn_mask=None):
            return super().forward(x, attn_mask) * 2

    class Deaf(TimmStyleBlock):
        def __init__(self):
            super().__init__()
            own = self.attn.forward
            self.attn.forward = lambda x, attn_mask=None: own(x)

    class Handed(TimmStyleBlock):
        def forward(self, x, cu_seqlens):
            return super().forward(x)

    cases = {
        Doubled: "does more than its family .* with nothing reduced the output differs",
        Deaf: "does not honour log sizes",
        Handed: "is handed cu_seqlens beside its tokens",
    }
    for kind, message in cases.items():
        model = build("timm")
        model.blocks[2] = kind().eval()
        with pytest.raises(InputError, match=rf"blocks.2 \({kind.__name__}\) {message}"):
            reduce_tokens(model, Merge(removed=(2,) * 4))
        assert not any(m._forward_hooks or "forward" in m.__dict__ for m in model.blocks)
    model.blocks[2] = Deaf().eval()
    reduce_tokens(model, Merge(removed=(2,) * 4, proportional=False))


def test_what_a_block_needs_is_read_from_its_forward():
    assert required_arguments(TimmStyleBlock()) == []
    require_only_tokens(TimmStyleBlock(), (None,), {"output_hidden_states": True, "is_causal": False})


def test_registers_are_no_class_token():
    class Gap(TimmStyleViT):
        def __init__(self):
            super().__init__("avg")
            self.num_prefix_tokens, self.has_class_token, self.cls_token = 4, False, None

    for scorer in ("class_attention", "class_similarity"):
        with pytest.raises(InputError, match="has none; use merging"):
            reduce_tokens(Gap(), Keep(rates=(0.5,) * 4, scorer=scorer))
    patch = reduce_tokens(Gap(), Merge(removed=(2,) * 4))
    assert patch.tower.protected == 4
