"""Folds: each kind by a closed form, what must stay, and random networks in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lessen.errors import TaskError
from lessen.folding.run import fold
from lessen.stored.constant import Constant


def stirred(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms statistics and scales as if they were trained."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            if module.affine:
                nn.init.normal_(module.weight, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    return model.eval()


def folded(model, *inputs, **keywords):
    generator = torch.Generator().manual_seed(1)
    found = fold(model, [(inputs, keywords)], generator)
    with torch.no_grad():
        expected = model(*inputs, **keywords)
        torch.testing.assert_close(found.model(*inputs, **keywords), expected, rtol=1e-4, atol=1e-5)
    return found


def kinds(found):
    return [each.kind for each in found.folds]


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.Linear(6, 5), nn.BatchNorm1d(5)), (4, 6)),
        ((nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8)), (2, 6, 5, 5)),
        ((nn.ConvTranspose2d(6, 8, 2, 2, groups=2), nn.BatchNorm2d(8, affine=False)), (2, 6, 5, 5)),
        ((nn.Conv1d(6, 4, 3), nn.Dropout(0.2), nn.BatchNorm1d(4)), (2, 6, 9)),
        ((nn.BatchNorm1d(6), nn.Linear(6, 5, bias=False)), (4, 6)),
        ((nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, groups=2)), (2, 6, 5, 5)),
    ],
    ids=["linear", "grouped conv", "transposed", "conv and dropout", "before linear", "before conv"],
)
def test_a_batch_norm_goes_into_its_neighbour(layers, shape):
    found = folded(stirred(nn.Sequential(*layers)), drawn(*shape))
    assert kinds(found) == ["batch norm"]
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in found.model.modules())
    assert found.error < 1e-12


class Norms(nn.Module):
    """Places where a batch norm has to stay."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case, self.layer, self.norm = case, nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.rest = nn.Linear(4, 3)
        self.conv, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        hidden = self.layer(x)
        if self.case == "read twice":
            return self.rest(torch.relu(self.norm(hidden))) + hidden[:, :3]
        if self.case == "called twice":
            return torch.relu(self.norm(torch.relu(self.norm(hidden))))
        if self.case == "weight read":
            return torch.relu(self.norm(hidden)) + self.norm.weight
        if self.case == "axis":
            return torch.relu(self.norm(hidden[:, :, None].expand(-1, -1, 4) @ torch.eye(4)))
        return self.conv(self.norm2(torch.relu(hidden)[:, :, None, None].expand(-1, -1, 3, 3)))  # shifted rim


@pytest.mark.parametrize("case", ["read twice", "called twice", "weight read", "axis", "padded after"])
def test_a_batch_norm_stays_where_it_must(case):
    found = folded(stirred(Norms(case)), drawn(5, 4))
    assert "batch norm" not in kinds(found)
    assert found.kept


@pytest.mark.parametrize("obstacle", ["hook", "parametrised", "shared", "subclass"])
def test_layers_that_others_watch_stay(obstacle):
    class Own(nn.Linear):
        pass

    model = stirred(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4)))
    if obstacle == "hook":
        model[0].register_forward_hook(lambda *_: None)
    elif obstacle == "parametrised":
        parametrizations.weight_norm(model[0])
    elif obstacle == "shared":
        model[3].weight = model[0].weight
    else:
        model[0] = Own(4, 4)
    found = folded(model, drawn(5, 4))
    assert kinds(found) == []
    assert "1" in found.kept


def test_what_is_to_be_left_is_left_with_what_would_go_into_it():
    model = stirred(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 5), nn.BatchNorm1d(5)))
    found = fold(model, [((drawn(6, 4),), {})], torch.Generator(), lambda path: "is in `skip`" if path == "0" else None)
    assert [each.path for each in found.folds] == ["4"]
    assert found.kept["1"] == "is in `skip`"


class RepVGG(nn.Module):
    def __init__(self, groups=1, identity=True):
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(8))
        self.narrow = nn.Sequential(nn.Conv2d(8, 8, 1, groups=groups, bias=False), nn.BatchNorm2d(8))
        self.skip = nn.BatchNorm2d(8) if identity else None

    def forward(self, x):
        total = self.narrow(x) + self.wide(x)
        return torch.relu(total if self.skip is None else total + self.skip(x))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("identity", [True, False])
def test_branches_become_one_convolution(groups, identity):
    found = folded(stirred(RepVGG(groups, identity)), drawn(2, 8, 6, 6))
    convs = [module for module in found.model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 1
    assert convs[0].kernel_size == (3, 3)
    assert kinds(found).count("branch") == 1 + identity
    assert found.error < 1e-12


def test_branches_of_other_places_stay_apart():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1)  # unpadded: the centre moves

        def forward(self, x):
            return self.a(x) + self.b(x)[..., 1:-1, 1:-1]

    assert kinds(folded(Net().eval(), drawn(2, 3, 6, 6))) == []


@pytest.mark.parametrize(("sizes", "merges"), [((6, 9, 5), True), ((9, 2, 9), False)])
def test_linear_layers_in_a_row_merge_where_that_is_cheaper(sizes, merges):
    first, middle, last = sizes
    model = nn.Sequential(nn.Linear(first, middle), nn.Dropout(), nn.Linear(middle, last)).eval()
    found = folded(model, drawn(4, first))
    assert kinds(found) == ["linear chain"] * merges
    if merges:
        merged = found.model[0]
        expected = model[2].weight.double() @ model[0].weight.double()
        torch.testing.assert_close(merged.weight.double(), expected, rtol=1e-5, atol=1e-6)
        assert (merged.in_features, merged.out_features) == (first, last)


def test_a_convolution_of_width_one_joins_the_one_before():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)).eval()
    found = folded(model, drawn(2, 3, 6, 6))
    assert kinds(found) == ["linear chain"]
    assert found.model[0].weight.shape == (4, 3, 3, 3)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Sigmoid()], ids=lambda a: type(a).__name__)
def test_units_that_say_nothing_of_their_own_go(activation):
    model = nn.Sequential(nn.Linear(5, 12), activation, nn.Linear(12, 3)).eval()
    with torch.no_grad():
        model[0].weight[2] = 0  # always f(b)
        model[2].weight[:, 4] = 0  # not read
        model[0].weight[7], model[0].bias[7] = model[0].weight[6], model[0].bias[6]  # a double
        model[0].weight[9], model[0].bias[9] = model[0].weight[6], model[0].bias[6]
    found = folded(model, drawn(8, 5))
    assert kinds(found) == ["4 units"]
    assert found.model[0].out_features == found.model[2].in_features == 8


def test_constant_channels_stay_under_padding_and_go_without():
    for padding, gone in ((1, False), (0, True)):
        model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 4, 3, padding=padding)).eval()
        with torch.no_grad():
            model[0].weight[1] = 0
        assert bool(kinds(folded(model, drawn(2, 2, 9, 9)))) == gone


class Gated(nn.Module):
    """A gate whose context is a parameter, as in FinalMLP without context features."""

    def __init__(self):
        super().__init__()
        self.context = nn.Parameter(torch.randn(1, 4))
        self.gate = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 6), nn.Sigmoid())
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        return self.last(x * self.gate(self.context))


def test_a_part_that_reads_weights_only_becomes_its_answer():
    found = folded(Gated().eval(), drawn(4, 6))
    assert kinds(found) == ["constant part"]
    assert isinstance(found.model.gate, Constant)
    with torch.no_grad():  # whoever writes over the answer writes over a copy
        found.model.gate().zero_()
        assert found.model.gate().any()


class Positions(nn.Module):
    """Reads weights and a length: no constant, though one batch shape cannot tell."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 6)

    def forward(self, x):
        return x + self.table(torch.arange(x.shape[1]))


def test_what_depends_on_a_length_is_no_constant():
    found = folded(Positions().eval(), drawn(4, 9, 6))
    assert kinds(found) == []
    found.model(drawn(4, 20, 6))


def test_equal_tensors_become_one_and_long_floats_short():
    model = nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9)).eval()
    model[2].load_state_dict(model[0].state_dict())
    model[2].weight = nn.Parameter(model[0].weight.detach().clone())
    model.register_buffer("table", torch.arange(100, dtype=torch.float64))
    found = folded(model, drawn(4, 9))
    assert kinds(found) == ["double", "float64"]
    assert found.model[2].weight is found.model[0].weight
    assert found.model.table.dtype is torch.float32


def test_the_model_itself_is_untouched_and_modes_come_back():
    model = stirred(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())).train()
    before = copy.deepcopy(model.state_dict())
    model.eval()
    folded(model, drawn(4, 4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert isinstance(model[1], nn.BatchNorm1d)


def test_a_model_that_answers_by_chance_is_refused():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x) + torch.rand(1)

    with pytest.raises(TaskError, match="twice alike"):
        fold(Noisy().eval(), [((drawn(2, 3),), {})], torch.Generator())


def test_a_model_whose_steps_depend_on_values_is_refused():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return torch.relu(self.layer(x)) if x.sum() > 0 else self.layer(x)

    positive = torch.ones(4, 3)
    with pytest.raises(TaskError, match="other steps"):
        fold(Branching().eval(), [((positive,), {}), ((-positive,), {})], torch.Generator())
