"""Language students of every source of teacher, and students cut from one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lessen.artifact import folder as artifact
from lessen.errors import ArtifactError, ConfigError, InputError, NonFiniteError, NothingMatchedError, TaskError
from lessen.export.hf import export_hf
from lessen.method import Context
from lessen.methods.distil._shared.divergences import divergence
from lessen.methods.distil._shared.places import places
from lessen.methods.distil.gkd import GKD
from lessen.methods.distil.layer_cut import LayerCut, chosen
from lessen.methods.distil.random_sampling_kd import RandomSamplingKD
from lessen.methods.distil.semantic_revision import SemanticRevision
from lessen.methods.distil.sequence_kd import SequenceKD
from lessen.recipe import Recipe
from lessen.stored.linears.low_rank_delta import LowRankDelta
from lessen.task import Task
from lessen.train.teachers import Teacher
from tiny_models import gpt2, llama
from words import Words

METHODS = [GKD, SequenceKD, SemanticRevision, RandomSamplingKD]


@pytest.fixture(scope="module")
def taught() -> Task:
    torch.manual_seed(0)
    deep = Words(2)
    master = deep.build()
    import dataclasses

    deep.train(master, settings=dataclasses.replace(deep.settings, epochs=12))
    return Words().view(teacher=lambda seed: master)


def gap(task: Task, model: nn.Module) -> float:
    master = task.teacher(0)  # type: ignore[attr-defined]
    total = []
    for batch in task.batches("test"):
        seen = places(task, batch)
        with torch.no_grad():
            own, wanted = task.forward(model.eval(), batch), task.forward(master, batch)
        total.append(float(divergence(seen.rows(own), seen.rows(wanted), "forward").mean()))
    return sum(total) / len(total)


@pytest.mark.parametrize(
    "method",
    [
        GKD(on_policy=0.0, kind="forward"), GKD(on_policy=0.0, kind="reverse"), GKD(on_policy=0.5, memory=2),
        SequenceKD(sampling=1.0), SemanticRevision(span_weight=0.0, task_weight=0.0, top=8),
        SemanticRevision(span_weight=0.0, clip="fixed", on_policy=0.5), RandomSamplingKD(), GKD(lora=4, on_policy=0.0, epochs=3),
    ],
    ids=["forward", "reverse", "on-policy", "sequence", "revision", "fixed", "draws", "lora"],
)  # fmt: skip
def test_a_student_comes_nearer_to_its_teacher(method, taught: Task) -> None:
    torch.manual_seed(2)
    student = taught.build()
    before = gap(taught, student)
    found, (step,) = Recipe([method]).apply(student, taught)
    assert gap(taught, found) < 0.95 * before
    assert step.findings["teacher"] == "the task's"
    if method.__class__ is GKD and method.lora:
        assert any(isinstance(module, LowRankDelta) for module in found.modules())
        assert torch.equal(found.model.embed_tokens.weight, student.model.embed_tokens.weight)  # type: ignore[union-attr]
        assert all(p.requires_grad for name, p in found.named_parameters() if "embed" in name)
    else:
        assert found.state_dict().keys() == student.state_dict().keys()


def test_at_its_limits_semantic_revision_is_word_level_distillation(taught: Task) -> None:
    torch.manual_seed(2)
    student = taught.build()
    plain, _ = Recipe([GKD(on_policy=0.0, kind="forward", epochs=1)]).apply(student, taught)
    limit = SemanticRevision(on_policy=0.0, clip="none", span_weight=0.0, task_weight=0.0, epochs=1)
    found, _ = Recipe([limit]).apply(student, taught)
    for a, b in zip(plain.parameters(), found.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_teacher_in_a_folder_or_an_artifact_teaches_the_same(taught: Task, tmp_path: Path) -> None:
    master = taught.teacher(0)  # type: ignore[attr-defined]
    master.save_pretrained(tmp_path / "folder")
    torch.manual_seed(2)
    student = taught.build()
    bare = Words()
    one, _ = Recipe([GKD(on_policy=0.0, epochs=1)]).apply(student, taught)
    other, _ = Recipe([GKD(on_policy=0.0, epochs=1, teacher=str(tmp_path / "folder"))]).apply(student, bare)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    wide = Words(vocabulary=25)
    for cls in METHODS:
        with pytest.raises(TaskError, match="the teacher's vocabulary has 24 tokens, the student's 25"):
            Recipe([cls(teacher=str(tmp_path / "folder"), epochs=1)]).apply(wide.build(), wide)


def test_a_folder_with_another_tokenizer_is_refused(taught: Task, tmp_path: Path, tokenizer) -> None:
    taught.teacher(0).save_pretrained(tmp_path)  # type: ignore[attr-defined]
    tokenizer.save_pretrained(tmp_path)
    other = Words()
    other.tokenizer = type("Other", (), {"get_vocab": lambda self: {"a": 0}})()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="has another vocabulary than task 'words'"):
        Recipe([GKD(teacher=str(tmp_path))]).apply(other.build(), other)


def test_a_teacher_that_gives_nan_is_refused(taught: Task) -> None:
    broken = Words(2).build()
    with torch.no_grad():
        broken.lm_head.weight[0] = torch.nan
    for cls in METHODS:
        with pytest.raises(NonFiniteError, match="the teacher gave NaN"):
            Recipe([cls()]).apply(taught.build(), taught.view(teacher=lambda seed: broken))


def test_draws_are_kept_and_those_of_another_teacher_refused(taught: Task, tmp_path: Path) -> None:
    calls: list[int] = []
    master = taught.teacher(0)  # type: ignore[attr-defined]
    handle = master.register_forward_hook(lambda *_: calls.append(1))
    method = RandomSamplingKD(epochs=3, cache=str(tmp_path / "draws"))
    student = taught.build()
    try:
        fixed = taught.view(batches=lambda split, seed=0: Words().batches(split, 0), score=lambda *_: 0.0)
        Recipe([method]).apply(student, fixed)
    finally:
        handle.remove()
    assert len(calls) == 2 + 4  # two looks, and each of four batches once in three epochs
    with pytest.raises(ArtifactError, match="holds the outputs of another teacher, or other outputs of this one"):
        Recipe([method.model_copy(update={"draws": 8})]).apply(student, fixed)
    with pytest.raises(ArtifactError, match="holds the outputs of another teacher"):
        Recipe([method]).apply(student, fixed.view(teacher=lambda seed: Words(2).build()))
    wide = Words(vocabulary=300)
    many = RandomSamplingKD(draws=30, cache=str(tmp_path / "many"))
    with pytest.raises(ConfigError, match="30 draws from 300 tokens take 34 bytes a token, more than 30; draw fewer"):
        Recipe([many]).apply(wide.build(), wide.view(teacher=lambda seed: Words(2, 300).build()))


def test_a_token_takes_at_most_30_bytes_on_disk(tmp_path: Path) -> None:
    from lessen.train.output_cache import OutputCache
    from lessen.train.sampled import SampledTeacher

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.randn(64, 49_152, generator=torch.Generator().manual_seed(0)))

        def forward(self, ids: Tensor) -> Tensor:
            return self.rows[ids]

    cache = OutputCache(tmp_path)
    teacher = SampledTeacher(Table(), lambda m, b: m(b), 12, 1.0, torch.Generator().manual_seed(0), cache=cache)
    ids = torch.randint(0, 64, (8, 64), generator=torch.Generator().manual_seed(1))
    first = teacher(ids)
    teacher.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) / ids.numel() <= 30
    again = teacher(ids)
    assert torch.equal(first["draws"], again["draws"])
    assert int(again["vocabulary"][0]) == 49_152


def test_texts_that_never_come_again_are_not_cached(taught: Task, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="with on_policy = 1 no text comes again"):
        Recipe([GKD(on_policy=1.0, cache=str(tmp_path / "c"))]).apply(taught.build(), taught)


def test_phrases_need_a_tokenizer(taught: Task) -> None:
    wide = Words(vocabulary=300)
    with pytest.raises(TaskError, match="has no tokenizer, so that no phrase can be found"):
        Recipe([SemanticRevision()]).apply(wide.build(), wide.view(teacher=lambda seed: Words(2, 300).build()))


def test_which_layers_are_kept() -> None:
    assert chosen(30, 10, "spread") == [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]
    assert chosen(12, 6, "first") == [0, 1, 2, 3, 4, 5]
    assert chosen(12, 3, "last") == [9, 10, 11]
    assert chosen(5, 1, "spread") == [0]
    assert chosen(30, 10, "early") == [0, 1, 2, 3, 7, 12, 16, 20, 25, 29]
    assert all(len(set(chosen(d, n, "spread"))) == n for d in range(2, 40) for n in range(1, d))
    assert all(len(set(chosen(d, n, "early"))) == n for d in range(2, 40) for n in range(1, d))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_cut_model_is_a_plain_smaller_one(name, tmp_path: Path) -> None:
    import transformers

    from lessen.methods.distil.kd import KD  # noqa: F401 - the family is importable alone

    model = llama(num_hidden_layers=5) if name == "llama" else gpt2()
    method = LayerCut(layers=3 if name == "llama" else 1)
    found, (step,) = Recipe([method]).apply(model, Words())
    kept = step.findings["blocks kept"]
    assert kept == ([0, 2, 4] if name == "llama" else [0])
    assert found.config.num_hidden_layers == len(kept)  # type: ignore[union-attr]
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        expected = found(input_ids=ids).logits
        written = found.generate(ids, max_new_tokens=5, do_sample=False)  # keys and values by the new numbers
    found.save_pretrained(tmp_path / "folder")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder").eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, expected)
        assert torch.equal(again.generate(ids, max_new_tokens=5, do_sample=False), written)
    artifact.save(tmp_path / "artifact", found, model)
    loaded = artifact.load(tmp_path / "artifact", model=model)
    assert loaded.config.num_hidden_layers == len(kept)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, expected)
    export_hf(loaded, None, tmp_path / "exported")
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    assert opened.config.num_hidden_layers == len(kept)
    with torch.no_grad():
        assert torch.equal(opened(input_ids=ids).logits, expected)
    forecast = method.forecast(model, Words(), Context())
    held = sum(t.nbytes for t in {t.data_ptr(): t for t in found.state_dict().values()}.values())
    assert forecast is not None
    assert forecast.bytes == held


def test_what_cannot_be_cut_is_one_line() -> None:
    with pytest.raises(NothingMatchedError, match="has 2 blocks, of which 2 are kept"):
        Recipe([LayerCut(layers=2)]).apply(llama(), Words())
    mixed = llama(num_hidden_layers=4)
    mixed.config.layer_types = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    with pytest.raises(InputError, match="block 3 of LlamaModel is of another kind than block 1"):
        LayerCut(layers=2).apply(mixed, Words(), Context())


def test_teacher_is_not_changed_by_any(taught: Task) -> None:
    master = taught.teacher(0)  # type: ignore[attr-defined]
    before = {name: value.clone() for name, value in master.state_dict().items()}
    for cls in (GKD, RandomSamplingKD):
        Recipe([cls(epochs=1)]).apply(taught.build(), taught)
    assert all(torch.equal(value, before[name]) for name, value in master.state_dict().items())
    assert isinstance(Teacher(master, taught.forward), Teacher)
