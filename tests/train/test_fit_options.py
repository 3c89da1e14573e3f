"""Caps, accumulation, precision, chosen parameters, devices: what the settings say is what happens."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from lessen.errors import ConfigError, NonFiniteError, TaskError
from lessen.log import Log
from lessen.train.fit import fit
from lessen.train.hooks import Hook
from lessen.train.optimizers import build_optimizers, hidden_matrices
from lessen.train.parallel import Group
from lessen.train.settings import FitSettings, ParameterGroup
from small_training import Small, batches, calm, loss, same, small, train, validate


@pytest.mark.parametrize("updates", ["dense", "lazy-adam", "rowwise-adagrad"])
def test_accumulated_batches_step_as_the_whole_batch(updates: str) -> None:
    whole, parts = calm().double(), calm().double()
    settings = FitSettings(epochs=3, learning_rate=0.05, table_l2=0.01, table_updates=updates, patience=9)  # type: ignore[arg-type]

    def joined(epoch: int):
        each = batches(epoch)
        return [tuple(torch.cat(part) for part in zip(*each[i : i + 2], strict=True)) for i in (0, 2)]

    def mean(model: nn.Module, batch):
        return loss(model, (batch[0], batch[1].double()))

    def score(model: nn.Module) -> float:
        return -float(mean(model, (torch.arange(20), torch.zeros(20))).detach())

    one = fit(whole, batches=joined, loss=mean, validate=score, settings=settings)
    both = FitSettings(**{**vars(settings), "accumulate": 2})
    two = fit(parts, batches=batches, loss=mean, validate=score, settings=both)
    for expected, found in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(expected, found, atol=1e-10)
    assert (one.steps, one.examples) == (two.steps, two.examples) == (6, 192)


def test_the_last_group_of_a_pass_is_averaged_over_what_it_has() -> None:
    expected, found = calm(), calm()
    train(expected, epochs=1, optimizer="sgd", accumulate=4, clip_norm=None, learning_rate=0.1)
    train(found, epochs=1, optimizer="sgd", accumulate=7, clip_norm=None, learning_rate=0.1)
    assert same(expected, found)


def test_steps_replace_epochs_and_epochs_may_be_counted_in_steps() -> None:
    done = train(small(), steps=6, keep="last", patience=None, epochs=1)
    assert (done.steps, done.epochs, [e["epoch"] for e in done.history]) == (6, 2, [1, 2])
    done = train(small(), steps_per_epoch=3, epochs=3, patience=None)
    assert (done.steps, done.epochs) == (9, 3)
    assert done.examples == 9 * 16


def test_seconds_stop_after_a_step_and_the_model_is_judged() -> None:
    done = train(small(), epochs=1000, patience=None, max_seconds=1e-9)
    assert (done.steps, done.epochs) == (1, 1)
    assert math.isfinite(done.best_score)


def test_without_validation_the_last_weights_stay_and_plateau_is_refused() -> None:
    def run(model: nn.Module, **settings):
        return fit(model, batches=batches, loss=loss, validate=None, settings=FitSettings(**settings))

    with pytest.raises(ConfigError, match="the schedule plateau follows the validation score"):
        run(small())
    model, last = small(), small()
    done = run(model, epochs=3, schedule="constant")
    assert (done.epochs, done.best_epoch) == (3, 3)
    assert math.isnan(done.best_score)
    assert "score" not in done.history[0]
    train(last, epochs=3, schedule="constant", keep="last", patience=None)
    assert same(model, last)


def test_the_last_weights_are_kept_where_asked_and_patience_may_be_off() -> None:
    scores = iter([0.9, 0.1, 0.1, 0.1, 0.1])
    model, twin = small(), small()
    settings = FitSettings(epochs=5, schedule="constant", patience=None, keep="last")
    done = fit(model, batches=batches, loss=loss, validate=lambda _: next(scores), settings=settings)
    assert (done.epochs, done.best_epoch) == (5, 1)
    train(twin, epochs=5, schedule="constant", patience=None, keep="last")
    assert same(model, twin)


def test_bf16_trains_float32_weights_by_losses_of_less_precision() -> None:
    seen: list[torch.dtype] = []

    class Watches(Hook):
        def start(self, model: nn.Module) -> None:
            self.handle = model.deep.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))  # type: ignore[union-attr]

        def loss(self, model: nn.Module, batch: object, loss: Tensor) -> Tensor:
            assert torch.is_autocast_enabled("cpu")
            return loss

        def finish(self, model: nn.Module) -> None:
            self.handle.remove()

    exact, model = small(), small()
    train(exact, epochs=2, learning_rate=0.05)
    train(model, (Watches(),), epochs=2, learning_rate=0.05, precision="bf16")
    assert set(seen) == {torch.bfloat16, torch.float32}  # training, then validation
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    gap = max(float((a - b).detach().abs().max()) for a, b in zip(exact.parameters(), model.parameters(), strict=True))
    assert 0 < gap < 0.05


def test_only_chosen_parameters_train_and_everything_is_put_back() -> None:
    model, start = small(), small()
    model.out.bias.requires_grad_(False)
    train(model, parameters=[model.deep.weight, model.out.weight], epochs=2, learning_rate=0.05)
    moved = {name for (name, a), b in zip(model.named_parameters(), start.parameters(), strict=True) if not a.equal(b)}
    assert moved == {"deep.weight", "out.weight"}
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["out.bias"]


def test_groups_have_their_own_rates_decays_and_optimisers() -> None:
    model, start = calm(), calm()
    groups = [
        ParameterGroup([model.deep.weight], factor=0.5, optimizer="sgd"),
        ParameterGroup([model.out.weight], optimizer="sgd"),
        ParameterGroup([model.out.bias], factor=0.0, optimizer="sgd"),
        ParameterGroup([model.deep.bias], weight_decay=0.5, optimizer="sgd", factor=2.0),
    ]
    one = lambda _: batches(1)[:1]  # noqa: E731
    settings = FitSettings(epochs=1, learning_rate=0.1, clip_norm=None)
    fit(model, batches=one, loss=loss, validate=validate, settings=settings, parameters=groups)
    loss(start, batches(1)[0]).backward()  # type: ignore[no-untyped-call]
    for name, factor, decay in (
        ("deep.weight", 0.5, 0),
        ("out.weight", 1, 0),
        ("out.bias", 0, 0),
        ("deep.bias", 2, 0.5),
    ):
        before = start.get_parameter(name)
        expected = before - 0.1 * factor * (before.grad + decay * before)
        assert torch.allclose(model.get_parameter(name), expected, atol=1e-7), name
    assert torch.equal(model.table.weight, start.table.weight)


def test_a_group_of_sparse_tables_keeps_its_factor() -> None:
    moves = []
    for factor in (1.0, 0.25):
        model, start = calm(), calm()
        groups = [ParameterGroup([model.table.weight], factor=factor)]
        train(model, parameters=groups, steps=1, table_updates="lazy-adam", keep="last", clip_norm=None)
        moves.append((model.table.weight - start.table.weight).detach())
    assert torch.allclose(moves[1], 0.25 * moves[0], atol=1e-6)
    assert bool(moves[0].any())


def test_wrong_parameters_are_refused() -> None:
    model, other = small(), small()
    for wrong, message in [
        ([other.out.weight], r"a parameter of shape \(1, 6\) that the model does not hold"),
        ([model.out.weight, model.out.weight], r"a parameter of shape \(1, 6\) twice"),
        ([model.out.weight, ParameterGroup([model.out.bias])], "a list of parameters of the model, or a list of"),
        ([model], "a list of parameters of the model, or a list of"),
    ]:
        with pytest.raises(ConfigError, match=message):
            train(model, parameters=wrong)
    with pytest.raises(TaskError, match="was given none"):
        train(model, parameters=[])
    for wrong in ({"factor": -1.0}, {"weight_decay": math.inf}, {"optimizer": "lion"}):
        with pytest.raises(ConfigError, match=f"a parameter group has {next(iter(wrong))}"):
            ParameterGroup([model.out.weight], **wrong)


def test_muon_moves_hidden_matrices_and_adamw_the_rest() -> None:
    model = small()
    assert [p is model.deep.weight for p in hidden_matrices(model)] == [True]
    kinds = {type(o).__name__: o for o in build_optimizers(model, FitSettings(optimizer="muon"))}
    assert set(kinds) == {"Muon", "AdamW"}
    assert [p is model.deep.weight for group in kinds["Muon"].param_groups for p in group["params"]] == [True]
    before = model.deep.weight.detach().clone()
    train(model, steps=1, optimizer="muon", learning_rate=0.1, keep="last")
    # the update is orthogonal: its singular values are near 1 before torch scales it to AdamW's root mean square
    size = 0.1 * 0.2 * math.sqrt(max(before.shape))
    values = torch.linalg.svdvals((model.deep.weight - before).detach()) / size
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.5
    with pytest.raises(ConfigError, match="none of those trains here"):
        train(model, parameters=[model.out.bias], optimizer="muon")


def test_a_wrong_loss_is_named() -> None:
    def run(bad) -> None:
        fit(small(), batches=batches, loss=bad, validate=validate, settings=FitSettings())

    with pytest.raises(TaskError, match=r"one number, not shape \(16,\)"):
        run(lambda m, b: m(b[0]))
    with pytest.raises(TaskError, match="one number, not float"):
        run(lambda m, b: 1.0)
    with pytest.raises(TaskError, match="depends on no parameter that trains"):
        run(lambda m, b: b[1].mean())

    class Breaks(Hook):
        def loss(self, model: nn.Module, batch: object, loss: Tensor) -> Tensor:
            return loss * math.nan

    with pytest.raises(NonFiniteError, match="the training loss with the terms of hooks became nan in epoch 1, step 1"):
        train(small(), (Breaks(),))


def test_a_hook_of_the_old_form_is_refused_by_name() -> None:
    class Old(Hook):
        def penalty(self, model: nn.Module) -> Tensor:
            return model.out.weight.sum()  # type: ignore[union-attr, operator, return-value]

    with pytest.raises(ConfigError, match=r"hook Old has penalty\(model\); write loss\(model, batch, loss\)"):
        train(small(), (Old(),))


def test_hooks_hear_scalars_and_the_learning_rate() -> None:
    heard: list[dict[str, float]] = []
    rates: list[float] = []

    class Hears(Hook):
        def after_step(self, model: nn.Module, step: int) -> None:
            rates.append(self.learning_rate)

        def scalars(self, step: int, values) -> None:
            heard.append({"step": step, **values})

    done = train(small(), (Hears(),), epochs=1, schedule="linear", minimum_learning_rate=0.0, learning_rate=0.4)
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert [h["learning_rate"] for h in heard[:4]] == pytest.approx(rates)
    assert sum(h["loss"] for h in heard[:4]) / 4 == pytest.approx(done.history[0]["loss"])
    assert heard[4] == {"step": 4, "epoch": 1, "score": done.best_score}


def test_progress_counts_steps_where_their_number_is_known() -> None:
    seen: list[tuple[int, int]] = []

    class Recorder(Log):
        def progress(self, what: str, done: int, total: int) -> None:
            seen.append((done, total))

    settings = FitSettings(steps=8, patience=None)
    fit(small(), batches=batches, loss=loss, validate=validate, settings=settings, log=Recorder())
    assert seen[-1] == (8, 8)
    assert (4, 8) in seen


def test_gradient_checkpointing_is_switched_and_put_back() -> None:
    class Host(Small):
        is_gradient_checkpointing = False

        def gradient_checkpointing_enable(self) -> None:
            self.is_gradient_checkpointing = True

        def gradient_checkpointing_disable(self) -> None:
            self.is_gradient_checkpointing = False

        def forward(self, ids: Tensor) -> Tensor:
            assert self.is_gradient_checkpointing
            return super().forward(ids)

    host = Host()
    fit(
        host, batches=batches, loss=loss, validate=validate, settings=FitSettings(epochs=1, gradient_checkpointing=True)
    )
    assert not host.is_gradient_checkpointing
    with pytest.raises(ConfigError, match="Small does not"):
        train(small(), gradient_checkpointing=True)


def test_a_hugging_face_model_recomputes_and_trains_the_same() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    torch.manual_seed(0)
    plain = transformers.LlamaForCausalLM(config)
    saving = copy.deepcopy(plain)
    ids = torch.randint(0, 32, (4, 2, 9), generator=torch.Generator().manual_seed(0))
    passes = []
    saving.model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    for host, recompute in ((plain, False), (saving, True)):
        done = fit(
            host,
            batches=lambda _: [{"input_ids": one} for one in ids],
            validate=None,
            loss=lambda m, b: m(**b, labels=b["input_ids"], use_cache=False).loss,
            settings=FitSettings(epochs=2, schedule="constant", gradient_checkpointing=recompute),
        )
        assert (done.tokens, done.examples) == (2 * ids.numel(), 16)
    assert len(passes) == 2 * 2 * 4  # each step runs a block forward twice
    assert not saving.is_activation_checkpointing
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_several_processes_on_another_device_than_the_cpu_are_refused() -> None:
    with pytest.raises(ConfigError, match="several processes train over gloo, on cpu, not on meta"):
        fit(
            small().to("meta"), batches=batches, loss=loss, validate=validate, settings=FitSettings(), ranks=Group(0, 2)
        )
