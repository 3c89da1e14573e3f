"""Corrections of low rank on language models of transformers: pruned, taught by the model before, merged, exported."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

import transformers

from lessen.artifact import folder as artifact
from lessen.export.hf import export_hf
from lessen.recipe import Recipe
from lessen.tasks import get_task
from tiny_language import byte_level, host_folder

CUT = {"magnitude-pruning": {"units": 0.5, "uniform": True}}


@pytest.mark.parametrize("by", ["teacher", "labels"])
@pytest.mark.parametrize(("family", "changes"), [("Llama", {"tie_word_embeddings": True}), ("GPT2", {})])
def test_a_pruned_language_model_recovers_and_leaves_as_a_plain_one(by, family, changes, tmp_path):
    host_folder(tmp_path / "host", family, **changes)
    draw = torch.Generator().manual_seed(0)
    words = ["the cat", "a dog", "sat", "ran"]
    lines = [" ".join(words[i] for i in torch.randint(0, 4, (8,), generator=draw)) for _ in range(60)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    task = get_task({
        "name": "language", "model": str(tmp_path / "host"), "text": str(tmp_path / "text.txt"), "window": 32,
        "stride": 16, "prefill": 8, "unit": "line", "documents": 12, "train_documents": 24, "batch": 8,
    })  # fmt: skip
    model = task.reference()
    step = {"retrain": {"by": by, "lora": 4, "learning_rate": 3e-3, "epochs": 3}}
    pruned, _ = Recipe.parse({"steps": [CUT]}).apply(model, task)
    made, records = Recipe.parse({"steps": [CUT, step]}).apply(model, task)
    assert task.score(made) > task.score(pruned)
    assert [type(one) for one in made.modules()] == [type(one) for one in pruned.modules()]
    before, ranks = dict(pruned.named_parameters()), set()
    for name, weight in made.named_parameters():
        if not torch.equal(weight, before[name]):
            ranks.add(int(torch.linalg.matrix_rank(weight.detach() - before[name].detach(), tol=1e-4)))
    assert ranks
    assert max(ranks) <= 4
    assert records[1].findings["skipped"] == {"lm_head": "its weight is tied to another module"}

    ids = task.example_batch()[0]["input_ids"]
    with torch.no_grad():
        expected = made(ids).logits
        artifact.save(tmp_path / "a", made, model)
        loaded = artifact.load(tmp_path / "a", model=task.reference())
        assert torch.equal(loaded(ids).logits, expected)
        export_hf(loaded, byte_level(), tmp_path / "hf", dtype="float32")
        plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
        assert torch.allclose(plain(ids).logits, expected, atol=1e-5)
        assert plain.generate(ids[:1, :4], max_new_tokens=3, do_sample=False).shape == (1, 7)
