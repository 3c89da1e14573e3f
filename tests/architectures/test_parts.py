"""The parts found are the parts there are: shown by edits that must, and others that must not, change the output."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from host_models import ALL, DECODERS, ENCODERS, OTHERS, answer, host, inputs
from lessen.architectures.find import find_parts
from lessen.architectures.parts import Attention, Part
from lessen.errors import InputError, NothingMatchedError

KINDS = {
    **dict.fromkeys(DECODERS, "decoder"),
    **dict.fromkeys(ENCODERS, "encoder"),
    **dict.fromkeys(OTHERS, "encoder-decoder"),
    "clip": "dual",
    "siglip": "dual",
    "llava": "vision-language",
}
GROUPED = {"gpt_neox", "falcon", "falcon-new", "bloom", "gpt_bigcode"}
FUSED = GROUPED | {"gpt2", "phi3", "mpt", "modernbert"}


def scale_outputs(part: Part, rows: torch.Tensor, factor: float) -> None:
    matrix, bias = getattr(part.module, part.parameter).data, getattr(part.module, part.bias, None)
    (matrix.T if part.transposed else matrix)[rows] *= factor
    if bias is not None:
        bias.data[rows] *= factor


def scale_inputs(part: Part, columns: torch.Tensor, factor: float) -> None:
    (part.module.weight.data.T if part.transposed else part.module.weight.data)[:, columns] *= factor


def queries_of(attention: Attention, group: int) -> slice:
    share = attention.heads // attention.kv_heads
    return slice(group * share, (group + 1) * share)


def changed(model, given, before) -> bool:
    return not torch.allclose(answer(model, given), before, atol=1e-5, rtol=1e-5)


def stacks_of(name, model):
    return find_parts(model).stacks.values()


@pytest.mark.parametrize("name", ALL)
def test_the_kind_and_the_surroundings_are_right(name):
    model = host(name)
    parts = find_parts(model)
    assert parts.kind == KINDS[name]
    for stack in parts.stacks.values():
        assert len(stack.blocks) == (3 if name == "minilm" else 2)
        assert model.get_submodule(stack.path)[1] is stack.blocks[1].module
        assert stack.width == 32
        assert stack.embedding is not None
        assert (stack.final_norm is None) == (name in {"bert", "minilm", "distilbert", "roberta", "mpnet", "bart"})
        attention = stack.blocks[0].attention
        assert attention.fused == (name in FUSED)
        assert attention.grouped == (name in GROUPED)
    for path in (p.path for s in parts.stacks.values() for b in s.blocks for p in b.linears.values()):
        assert isinstance(model.get_submodule(path), nn.Module)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoders_embedding_head_and_ties_are_right(name):
    model = host(name)
    parts = find_parts(model)
    assert parts.head.module is model.get_output_embeddings()
    assert parts.stack.embedding.module is model.get_input_embeddings()
    assert parts.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    assert parts.stack.causal


@pytest.mark.parametrize("name", ALL)
def test_values_and_the_output_projection_belong_to_the_same_head(name):
    model, given = host(name), inputs(name)
    before = answer(model, given)
    for stack in stacks_of(name, model):
        for attention in (a for a in (stack.blocks[0].attention, stack.blocks[0].cross) if a):
            group = attention.kv_heads - 1
            columns = (
                attention.rows("query")
                if not attention.fused
                else torch.arange(attention.heads * attention.head_dim).view(attention.heads, -1)
            )
            scale_outputs(attention.value, attention.rows("value")[group], 4.0)
            assert changed(model, given, before), attention.path
            scale_inputs(attention.output, columns[queries_of(attention, group)].flatten(), 0.25)
            assert not changed(model, given, before), attention.path


@pytest.mark.parametrize("name", sorted(set(ALL) - {"qwen3", "gemma3", "olmo2"}))
def test_queries_and_keys_belong_to_the_same_group(name):
    model, given = host(name), inputs(name)
    before = answer(model, given)
    for stack in stacks_of(name, model):
        for attention in (a for a in (stack.blocks[0].attention, stack.blocks[0].cross) if a):
            scale_outputs(attention.key, attention.rows("key")[0], 4.0)
            assert changed(model, given, before), attention.path
            scale_outputs(attention.query, attention.rows("query")[queries_of(attention, 0)].flatten(), 0.25)
            assert not changed(model, given, before), attention.path


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "olmo2"])
def test_norms_of_queries_and_keys_are_seen(name):
    attention = find_parts(host(name)).stack.blocks[0].attention
    assert attention.query_norm.path.endswith("q_norm")
    assert attention.key_norm.path.endswith("k_norm")


@pytest.mark.parametrize("name", ALL)
def test_hidden_units_can_be_reordered_and_gated_ones_scaled(name):
    model, given = host(name), inputs(name)
    before = answer(model, given)
    for stack in stacks_of(name, model):
        layer = stack.blocks[0].feed_forward
        order = torch.randperm(layer.hidden, generator=torch.Generator().manual_seed(0))
        for part, rows in ((layer.up, layer.rows("up")), *([(layer.gate, layer.rows("gate"))] if layer.gate else [])):
            tensors = [part.module.weight.data.T if part.transposed else part.module.weight.data]
            tensors += [part.module.bias.data] if getattr(part.module, "bias", None) is not None else []
            for tensor in tensors:
                tensor[rows] = tensor[rows[order]]
        assert changed(model, given, before)
        down = layer.down.module.weight.data.T if layer.down.transposed else layer.down.module.weight.data
        down[:] = down[:, order]
        assert not changed(model, given, before)
        if layer.gate is not None:
            scale_outputs(layer.up, layer.rows("up")[:3], 4.0)
            scale_inputs(layer.down, torch.arange(3), 0.25)
            assert not changed(model, given, before)


@pytest.mark.parametrize("name", ALL)
def test_norms_stand_where_they_are_said_to_stand(name):
    model, given = host(name), inputs(name)
    seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(module, arguments, keywords, output):
        first = arguments[0] if arguments else next(iter(keywords.values()))
        seen[module] = (first, output[0] if isinstance(output, tuple) else output)

    handles = [m.register_forward_hook(keep, with_kwargs=True) for m in model.modules()]
    answer(model, given)
    for handle in handles:
        handle.remove()
    for stack in stacks_of(name, model):
        for block in stack.blocks:
            norms, reads = block.norms, []
            if norms.before_attention:
                reads += [(norms.before_attention, block.attention.query)]
            if norms.before_cross:
                reads += [(norms.before_cross, block.cross.query)]
            if norms.before_feed_forward:
                reads += [(norms.before_feed_forward, block.feed_forward.up)]
            for norm, reader in reads:
                assert torch.equal(seen[norm.module][1].flatten(), seen[reader.module][0].flatten()), norm.path
            gives = (
                (norms.after_attention, block.attention.output),
                (norms.after_feed_forward, block.feed_forward.down),
            )
            for norm, giver in gives:
                if norm is not None:
                    same = torch.equal(seen[norm.module][0].flatten(), seen[giver.module][1].flatten())
                    assert same != norms.on_residual, norm.path
            held = [n for n in vars(norms).values() if isinstance(n, Part)]
            assert held, block.path
        if stack.final_norm is not None and name != "llava":
            last = seen[stack.blocks[-1].module][1]
            assert stack.final_norm.module in seen
            assert torch.equal(seen[stack.final_norm.module][0].flatten()[:32], last.flatten()[:32])


def test_torchs_own_encoder_is_read():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(20, 16)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.score = nn.Linear(16, 3)

        def forward(self, ids):
            return self.score(self.encoder(self.words(ids)).mean(1))

    model, ids = Net().train(), torch.randint(0, 20, (2, 5))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    parts = find_parts(model)
    block = parts.stack.blocks[0]
    assert (parts.kind, parts.head.path, parts.stack.embedding.path) == ("encoder", "score", "words")
    assert (block.feed_forward.up.path, block.feed_forward.down.path) == (
        "encoder.layers.0.linear1",
        "encoder.layers.0.linear2",
    )
    assert (block.norms.before_attention.path, block.norms.parallel) == ("encoder.layers.0.norm1", False)
    before = model(ids)
    scale_outputs(block.attention.value, block.attention.rows("value")[1], 4.0)
    assert not torch.allclose(model(ids), before, atol=1e-5)
    scale_inputs(block.attention.output, torch.arange(4, 8), 0.25)
    assert torch.allclose(model(ids), before, atol=1e-5)


def test_our_own_vision_tower_is_read():
    from lessen.tasks.vision.vit import PlainViT, ViTOptions

    parts = find_parts(PlainViT(ViTOptions()))
    assert parts.kind == "encoder"
    assert parts.stack.modality == "vision"
    assert parts.head.path == "head"


def test_dual_encoders_and_vision_language_models_name_what_joins_them():
    assert {k: v.path for k, v in find_parts(host("clip")).projections.items()} == {
        "text": "text_projection",
        "vision": "visual_projection",
    }
    assert {k: v.path for k, v in find_parts(host("siglip")).projections.items()} == {
        "text": "text_model.head",
        "vision": "vision_model.head",
    }
    found = find_parts(host("llava"))
    assert found.projections["projector"].path == "model.multi_modal_projector"
    assert found.head.path == "lm_head"


def test_a_stored_layer_keeps_its_place():
    from lessen.stored.linears.int8_linear import Int8Linear

    model = host("llama")
    block = find_parts(model).stack.blocks[0]
    block.module.mlp.up_proj = Int8Linear.from_dense(block.feed_forward.up.module)
    again = find_parts(model).stack.blocks[0].feed_forward
    assert (again.up.path, again.hidden) == (block.feed_forward.up.path, 48)


def test_experts_are_named_and_no_feed_forward_is_made_up():
    import transformers

    from host_models import IDS, TEXT

    mixtral = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**TEXT, **IDS, num_key_value_heads=2, num_local_experts=2)
    )
    block = find_parts(mixtral).stack.blocks[0]
    assert block.experts.path == "model.layers.0.mlp.experts"
    assert block.feed_forward is None


def test_other_models_are_refused_by_what_they_hold():
    with pytest.raises(NothingMatchedError, match=r"looked for a list of modules .* hold Conv2d"):
        find_parts(nn.Sequential(nn.ModuleList([nn.Conv2d(1, 1, 1)])))
    with pytest.raises(InputError, match=r"is a dual model \(text: .*, vision: .*\); what is needed here is decoder"):
        find_parts(host("clip"), "decoder")
    with pytest.raises(InputError, match=r"decoder model .* what is needed here is encoder or dual"):
        find_parts(host("gpt2"), "encoder", "dual")


def test_layouts_that_cannot_be_read_are_refused_by_name():
    import transformers

    options = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 32, "rotary_dim": 8}
    with pytest.raises(InputError, match="CodeGenAttention.* four partitions"):
        find_parts(transformers.CodeGenForCausalLM(transformers.CodeGenConfig(**options)))

    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8) for _ in range(3))
            self.o_proj = nn.Linear(8, 8)

    with pytest.raises(InputError, match="Silent does not say how many heads"):
        find_parts(nn.ModuleList([Silent(), Silent()]))
