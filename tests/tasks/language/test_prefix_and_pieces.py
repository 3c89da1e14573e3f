"""Windows behind a prefix, read in pieces: what is judged stays the same, and the cache is weighed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

from lessen.decoding.opening import opening
from lessen.errors import ConfigError, InputError
from lessen.methods.weights.intactkv import IntactKV
from lessen.methods.weights.kivi import KIVI
from lessen.methods.weights.rtn import RTN
from lessen.recipe import Recipe
from lessen.tasks import get_task
from lessen.tasks.language.windows import UNJUDGED
from lessen.trade import compress
from tiny_models import llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("models") / "tiny"
    llama().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    draw = torch.Generator().manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    rows = ("".join(letters[i] for i in torch.randint(0, 26, (n,), generator=draw)) for n in range(30, 110))
    path.write_text("\n".join(rows))
    return path


def task(folder, text, **options):
    given = {"window": 40, "stride": 16, "prefill": 8, "unit": "line", "documents": 6} | options
    return get_task({"name": "language", "model": str(folder), "text": str(text), **given})


def test_every_window_starts_with_the_prefix_and_judges_what_it_judged(folder, text):
    plain, started = task(folder, text, window=37), task(folder, text, prefix="xyz")
    first = started.opening
    assert len(first) == 3
    for split in ("test", "train"):
        for inputs, labels in started.batches(split):
            assert inputs["input_ids"].shape == labels.shape
            assert (inputs["input_ids"][:, :3] == torch.tensor(first)).all()
            assert (labels[:, :4] == UNJUDGED).all()
    for (a, b), (c, d) in zip(plain.batches("test"), started.batches("test"), strict=True):
        assert torch.equal(a["input_ids"], c["input_ids"][:, 3:])
        assert torch.equal(b, d[:, 3:])
    model = plain.reference()
    one, other = plain.outcomes(model), started.outcomes(model)
    assert np.array_equal(one.columns["tokens"], other.columns["tokens"])
    assert np.array_equal(one.columns["bytes"], other.columns["bytes"])
    assert not np.array_equal(one.columns["nll"], other.columns["nll"])
    assert started.example_batch()[0]["input_ids"][0, :3].tolist() == first
    assert "starts with 3 tokens" in started.notes()[0]


def test_pieces_change_nothing_with_an_exact_cache_and_weigh_it(folder, text):
    whole, pieces = task(folder, text, prefix="xyz"), task(folder, text, prefix="xyz", piece=7)
    model = whole.reference()
    one, other = whole.outcomes(model), pieces.outcomes(model)
    assert np.allclose(one.columns["nll"], other.columns["nll"], rtol=1e-5)
    assert whole.costs(one) == {}
    assert pieces.costs(other) == {"kv_bytes": 2 * 2 * 2 * 8 * 4}  # layers, keys and values, heads, width, float32
    made, _ = Recipe([KIVI(bits=2, group=4, residual=4, first=0)]).apply(model, pieces, seed=0)
    coded = pieces.outcomes(made)
    assert pieces.costs(coded)["kv_bytes"] < 160
    assert not np.allclose(one.columns["nll"], coded.columns["nll"], rtol=1e-5)
    assert np.array_equal(whole.outcomes(made).columns["nll"], one.columns["nll"])  # read whole, nothing is heard


def test_a_trade_names_the_bytes_of_the_cache_and_keeps_both_patches(folder, text, tmp_path):
    judge = task(folder, text, prefix="xyz", piece=8)
    recipe = Recipe([RTN(bits=4, min_weights=64, group=32), IntactKV(), KIVI(bits=4, group=4, residual=4)])
    trade = compress(judge.reference(), judge, recipe, seed=0, margin=10.0)
    assert trade.measurement.cost["kv_bytes"] < trade.measurement.reference["cost"]["kv_bytes"]
    assert "keys and values a token" in str(trade)
    trade.save(tmp_path / "a")
    from lessen.artifact.folder import verify

    assert verify(tmp_path / "a").probe in ("equal", "close")


def test_openings_are_the_start_of_text_the_template_or_a_text(tokenizer):
    import copy

    own = copy.deepcopy(tokenizer)
    own.bos_token = "b"
    assert opening(own, "bos") == [own.bos_token_id]
    own.chat_template = "{% for m in messages %}ab{{ m['content'] }}{% endfor %}"
    assert opening(own, "chat") == own("ab", add_special_tokens=False)["input_ids"]
    own.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ConfigError, match="share no first token"):
        opening(own, "chat")
    own.bos_token = None
    with pytest.raises(ConfigError, match="no start-of-text token"):
        opening(own, "bos")
    own.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        opening(own, "chat")
    with pytest.raises(ConfigError, match="empty text"):
        opening(own, "")


def test_a_prefix_that_leaves_no_overlap_is_refused(folder, text):
    with pytest.raises(ConfigError, match="leaves no overlap at stride 16"):
        task(folder, text, prefix="x" * 30).outcomes(llama())
