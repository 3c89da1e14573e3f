"""Pruning as users meet it: hosts of transformers, artifacts, folders and files that other programs read."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

import transformers

from calibrated_hosts import Host
from host_models import answer, host, inputs
from lessen.artifact import folder as artifact
from lessen.errors import BudgetError, ConfigError, InputError, NothingMatchedError
from lessen.export.gguf.write import export_gguf
from lessen.export.hf import export_hf
from lessen.export.onnx_decoder import OnnxDecoder, export_decoder
from lessen.method import Context
from lessen.methods.adapt.retrain import Retrain
from lessen.methods.sites import state_bytes
from lessen.methods.weights.first_order_pruning import FirstOrderPruning
from lessen.methods.weights.layer_drop import LayerDrop
from lessen.methods.weights.magnitude_pruning import MagnitudePruning
from lessen.methods.weights.mope import MoPE
from lessen.methods.weights.random_pruning import RandomPruning
from lessen.recipe import Recipe
from tiny_language import byte_level, language_model

NAMES = ("minilm", "vit", "clip", "llama")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "method",
    [
        MagnitudePruning(share=0.7, multiple=4), RandomPruning(heads=0.5, units=0.5, multiple=4),
        FirstOrderPruning(of="parameters", share=0.7, multiple=4), MoPE(share=0.7, multiple=4, layers=0.5),
        LayerDrop(layers=0.5),
    ],
    ids=lambda method: method.card.name,
)  # fmt: skip
def test_artifacts_keep_widths_and_counts(name, method, tmp_path):
    model = host(name)
    made, records = Recipe([method]).apply(model, Host(name))
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in model.parameters())
    artifact.save(tmp_path / "a", made, model)
    loaded = artifact.load(tmp_path / "a", model=host(name, seed=3))
    given = inputs(name)
    assert torch.equal(answer(loaded, given), answer(made, given))
    assert records[0].findings["kept"]
    if getattr(method, "heads", None) is None:  # shares of the model are those of the first; shares of blocks are not
        with pytest.raises(NothingMatchedError):
            Recipe([method]).apply(loaded, Host(name))


def test_only_and_skip_name_places_and_the_share_is_theirs():
    model, task = host("minilm"), Host("minilm")
    before = {name: p.numel() for name, p in model.named_parameters()}

    def left(**knobs):
        made, records = Recipe([MagnitudePruning(share=0.5, multiple=4, of="parameters", **knobs)]).apply(model, task)
        return made, {n: p.numel() / before[n] for n, p in made.named_parameters() if p.numel() != before[n]}, records

    made, changed, _ = left(only="encoder.layer.1")
    assert changed
    assert all(name.startswith("encoder.layer.1.") for name in changed)
    first = {n for n in before if n.startswith("encoder.layer.1.") and n in changed}
    gone = sum(before[n] - p.numel() for n, p in made.named_parameters())
    places = sum(before[n] for n in first)  # weights and biases that go with heads and units
    assert gone == pytest.approx(0.5 * places, rel=0.1)
    with pytest.raises(NothingMatchedError, match=r"0.5 of the parameters or less is left"):
        Recipe([MagnitudePruning(share=0.5, multiple=4, of="parameters", only="encoder.layer.1")]).apply(made, task)
    again, _ = Recipe([MagnitudePruning(share=0.5, multiple=4, of="parameters", only="encoder.layer.0")]).apply(
        made, task
    )
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in made.parameters())
    _, changed, _ = left(skip="*.attention")
    assert changed
    assert not any(".attention." in name for name in changed)
    _, _, records = left(only=("*.query", "*.key", "*.value", "*.attention.output.dense"))
    assert all(units == 128 for stack in records[0].findings["kept"].values() for units in stack["units"])
    with pytest.raises(NothingMatchedError, match="leave no heads or units whole"):
        left(only="*.query")
    with pytest.raises(BudgetError, match=r"0.01 of what `only` and `skip` name cannot be reached"):
        Recipe([MagnitudePruning(share=0.01, only="encoder.layer.1")]).apply(model, task)
    with pytest.raises(ConfigError, match="width is read and written by every block"):
        Recipe.parse({"steps": [{"magnitude-pruning": {"width": 0.5, "only": "encoder.layer.1"}}]})
    with pytest.raises(ConfigError, match=r"only = 'encoder.layer.9' matches no module"):
        left(only="encoder.layer.9")


def test_a_place_that_is_kept_survives_an_artifact(tmp_path):
    model, task = host("minilm"), Host("minilm")
    step = MagnitudePruning(share=0.5, multiple=4, of="parameters", only="encoder.layer.1")
    made, _ = Recipe([step]).apply(model, task)
    artifact.save(tmp_path / "a", made, model)
    with pytest.raises(NothingMatchedError):
        Recipe([step]).apply(artifact.load(tmp_path / "a", model=host("minilm", seed=3)), task)


@pytest.mark.parametrize("rule", ["loss", "similarity", "random"])
def test_blocks_that_are_not_named_are_not_dropped(rule):
    made, records = Recipe([LayerDrop(layers=0.5, rule=rule, skip="vision_model")]).apply(host("clip"), Host("clip"))
    kept = {path: stack["blocks"] for path, stack in records[0].findings["kept"].items()}
    assert {path: len(blocks) for path, blocks in kept.items()} == {
        "text_model.encoder.layers": 1,
        "vision_model.encoder.layers": 2,
    }
    assert len(made.vision_model.encoder.layers) == 2


@pytest.mark.parametrize("width", [None, 0.5])
def test_a_uniform_decoder_loads_unmodified_everywhere(tmp_path, width):
    model = language_model()
    task = Host("llama")
    made, _ = Recipe([MagnitudePruning(heads=0.5, units=0.5, width=width, uniform=True), LayerDrop(layers=0.5)]).apply(
        model, task
    )
    ids = torch.randint(3, 280, (2, 9))
    with torch.no_grad():
        expected = made(ids).logits
    artifact.save(tmp_path / "a", made, model)
    loaded = artifact.load(tmp_path / "a", model=language_model(seed=1))
    export_hf(loaded, byte_level(), tmp_path / "hf")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert (plain.config.num_hidden_layers, plain.config.num_attention_heads) == (1, 2)
    assert plain.config.hidden_size == (64 if width is None else 32)
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, expected, atol=1e-5)
        assert plain.generate(ids, max_new_tokens=3, do_sample=False).shape == (2, 12)
    pytest.importorskip("gguf")
    export_gguf(loaded, byte_level(), tmp_path / "m.gguf")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, expected, atol=2e-2 * float(expected.abs().max()))
    pytest.importorskip("onnxruntime")
    export_decoder(loaded, tmp_path / "m.onnx")
    decoder = OnnxDecoder(tmp_path / "m.onnx")
    mask = torch.ones_like(ids)
    feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), **decoder.empty(2)}
    assert torch.allclose(torch.from_numpy(decoder.session.run(None, feeds)[0]), expected, atol=1e-3)


def test_widths_of_their_own_stay_in_artifacts(tmp_path):
    made, _ = Recipe([MagnitudePruning(share=0.6, of="parameters")]).apply(language_model(), Host("llama"))
    with pytest.raises(
        ConfigError, match=r"a folder holds the widths that its configuration can say.*prune with uniform: true"
    ):
        export_hf(made, None, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_an_encoder_with_fewer_units_loads_unmodified(tmp_path):
    made, _ = Recipe([MagnitudePruning(units=0.5, uniform=True)]).apply(host("minilm"), Host("minilm"))
    export_hf(made, None, tmp_path / "hf")
    plain = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    assert plain.config.intermediate_size == 64
    given = inputs("minilm")
    assert torch.allclose(answer(plain, given), answer(made, given), atol=1e-6)


@pytest.mark.parametrize("name", ["minilm", "llama", "clip"])
def test_refitted_blocks_come_closer_to_the_model_before(name):
    model, task = host(name), Host(name, 8)
    given = inputs(name)
    cut = MagnitudePruning(share=0.7, multiple=4)
    pruned, _ = Recipe([cut]).apply(model, task)
    found, records = Recipe([cut, Retrain(by="blocks", ridge=1e-2)]).apply(model, task)
    wanted = answer(model, given)
    apart = [float((answer(one, given) - wanted).square().mean()) for one in (pruned, found)]
    assert apart[1] < 0.7 * apart[0]
    assert all(0 <= left <= 1 for left in records[1].findings["energy left missing"].values())
    same, _ = Recipe([Retrain(by="blocks")]).apply(model, task)
    assert torch.allclose(answer(same, given), wanted, atol=1e-5)


def test_refits_skip_dropped_blocks_and_refuse_another_width():
    model, task = host("llama", num_hidden_layers=3), Host("llama", 8)
    given, wanted = inputs("llama"), answer(model, inputs("llama"))
    steps = [LayerDrop(layers=0.67), Retrain(by="blocks", ridge=1e-2)]
    short, found = (Recipe(steps[:count]).apply(model, task)[0] for count in (1, 2))
    assert (answer(found, given) - wanted).square().mean() < (answer(short, given) - wanted).square().mean()
    with pytest.raises(InputError, match="is 16 wide, its original 32"):
        Recipe([MagnitudePruning(width=0.5, units=0.5), Retrain(by="blocks")]).apply(model, task)


def test_corrections_of_low_rank_train_and_go_into_the_weights():
    from words import Words

    task = Words(2)
    torch.manual_seed(0)
    model = task.build().eval()
    before = copy.deepcopy(model)
    made, _ = Recipe([Retrain(by="labels", lora=2, epochs=1)]).apply(model, task)
    assert [type(m) for m in made.modules()] == [type(m) for m in before.modules()]
    assert task.score(made) > task.score(before)
    changed = [n for n, p in made.named_parameters() if not torch.equal(p, dict(before.named_parameters())[n])]
    assert changed
    for name in changed:
        difference = dict(made.named_parameters())[name] - dict(before.named_parameters())[name]
        assert int(torch.linalg.matrix_rank(difference, tol=1e-4)) <= 2
    assert all(p.requires_grad for p in made.parameters())


def test_a_forecast_says_the_bytes_and_the_least():
    model, task = language_model(intermediate_size=256), Host("llama")
    method = MagnitudePruning(share=0.6, of="parameters")
    said = method.forecast(model, task, Context(seed=0))
    made, _ = Recipe([method]).apply(model, task)
    assert state_bytes(made) == pytest.approx(said.bytes, rel=0.05)
    with pytest.raises(BudgetError) as caught:
        Recipe([MagnitudePruning(share=said.smallest - 0.01, of="parameters")]).apply(model, task)
    assert caught.value.nearest == pytest.approx(said.smallest)
    assert MagnitudePruning().forecast(model, task, Context(seed=0)).bytes is None


@pytest.mark.parametrize("quality", ["metric", "answers", "loss"])
def test_what_mope_asks_decides_and_rounds_rank_again(quality):
    from words import Words

    task = Words(2)
    torch.manual_seed(0)
    model = task.build().eval()
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data[:, :8] = 0  # a third of the units says nothing
    made, _ = Recipe([MoPE(units=0.67, multiple=8, neuron_groups=3, quality=quality, rounds=2)]).apply(model, task)
    batch = next(iter(task.batches("test")))
    assert {layer.mlp.down_proj.in_features for layer in made.model.layers} == {16}
    if quality == "answers":  # loss and accuracy may prefer to lose what does harm
        assert torch.allclose(task.forward(made, batch), task.forward(model, batch), atol=1e-5)
