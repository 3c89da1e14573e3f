"""Models that plain torch allows: what they compute with comes back from an artifact, or is refused before any work."""

import functools
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.nn import functional

import lessen
from lessen.errors import ArtifactError, InputError, LessenError, NothingMatchedError
from lessen.method import check_finite
from lessen.methods.rebuilt import check_rebuilt

pytestmark = pytest.mark.filterwarnings("ignore:.*(weight_norm|zero-element)")
ROWS = {"emb-rowwise-quant": {"bits": 8, "min_rows": 1}}


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.hidden, self.out = nn.Embedding(300, 12), nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, ids):
        return self.out(torch.relu(self.hidden(self.mixed(self.table(ids).mean(1)))))

    def mixed(self, rows):
        return rows


class Attribute(Plain):
    def __init__(self):
        super().__init__()
        self.turn = torch.randn(12, 12)

    def mixed(self, rows):
        return rows @ self.turn


class Unkept(Attribute):
    def __init__(self):
        super().__init__()
        del self.turn
        self.register_buffer("turn", torch.randn(12, 12), persistent=False)


class Constant(Attribute):
    def __init__(self):
        super().__init__()
        del self.turn
        self.register_buffer("turn", torch.arange(144.0).reshape(12, 12) / 144, persistent=False)


class InAList(Plain):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(12, 12)]

    def mixed(self, rows):
        return self.layers[0](rows)


class Closing(Plain):
    def __init__(self):
        super().__init__()
        table = self.table
        self.look = lambda ids: table(ids).mean(1)

    def forward(self, ids):
        return self.out(torch.relu(self.hidden(self.look(ids))))


class Noted(Plain):
    """Keeps what it computed from its weights in an attribute: hidden, and the same in every model of one state."""

    kept = None

    def forward(self, ids):
        if self.kept is None:
            self.kept = self.hidden.weight.detach().t().clone()
        return self.out(torch.relu(self.table(ids).mean(1) @ self.kept + self.hidden.bias))


class Renamed(Plain):
    def __init__(self):
        super().__init__()
        self._register_state_dict_hook(
            lambda _module, state, prefix, _local: None if prefix else {f"x_{name}": state[name] for name in state}
        )


class Noisy(Plain):
    def mixed(self, rows):
        return functional.dropout(rows, 0.5, training=True)


class Normed(Plain):
    def __init__(self):
        super().__init__()
        self.hidden = nn.utils.weight_norm(self.hidden)


class Parametrised(Plain):
    def __init__(self):
        super().__init__()
        self.hidden = nn.utils.parametrizations.weight_norm(self.hidden)


class Scripted(Plain):
    def __init__(self):
        super().__init__()
        self.hidden = torch.jit.script(nn.Sequential(self.hidden, nn.ReLU()))


class Compiled(Plain):
    def __init__(self):
        super().__init__()
        self.hidden = torch.compile(self.hidden, backend="eager")


class Named(Plain):
    def forward(self, ids):
        rows = self.table(input=ids).mean(1)
        return self.out(input=torch.relu(self.hidden(input=rows)))


class Bound(Plain):
    def __init__(self):
        super().__init__()
        self.calls = functools.partial(self.hidden.forward)

    def forward(self, ids):
        return self.out(torch.relu(self.calls(self.table(ids).mean(1))))


class Coarse(Plain):
    def __init__(self):
        super().__init__()
        self.bfloat16()


class Mine(lessen.Task):
    name = "mine"
    metrics = {"accuracy": lessen.ACCURACY}
    settings = lessen.FitSettings(epochs=1)

    def __init__(self, network):
        self.network = network
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, 300, (240, 3), generator=generator)
        self.labels = self.ids.sum(1) % 3

    def build(self):
        return self.network()

    def batches(self, split, seed=0):
        del seed
        first = {"train": 0, "validation": 80, "test": 160}[split]
        yield self.ids[first : first + 80], self.labels[first : first + 80]

    def loss(self, model, batch):
        return functional.cross_entropy(self.forward(model, batch).float(), batch[1])


HIDDEN = {
    Attribute: "the tensor in the attribute turn",
    Unkept: r"the buffer turn \(not persistent\)",
    InAList: "a Linear that InAList: layers keeps outside",
    Closing: "an? Embedding that Closing: look keeps outside",
    Renamed: "holds 'x_table.weight'.*a hook renames",
}


@pytest.mark.parametrize("network", HIDDEN)
def test_what_no_state_holds_is_named_before_any_work(network, monkeypatch):
    monkeypatch.setattr(lessen.Recipe, "apply", None)
    with pytest.raises(InputError, match=HIDDEN[network]) as caught:
        lessen.compress(network(), Mine(network), "linear-half", margin=0.5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("network", [Plain, Constant, Noted, Noisy])
def test_what_is_the_same_in_every_model_of_one_state_is_no_matter(network):
    model = network().eval()
    state = torch.random.get_rng_state()
    check_rebuilt(model, Mine(network))
    assert torch.equal(torch.random.get_rng_state(), state), "it draws from the process's own generator"


def test_a_model_that_differs_from_the_tasks_in_plain_numbers_is_left_alone():
    class Warm(Plain):
        warmth = 1.0

        def mixed(self, rows):
            return rows * self.warmth

    model = Warm().eval()
    model.warmth = 2.0
    check_rebuilt(model, Mine(Warm))


def test_a_model_that_never_answers_alike_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(lessen.Recipe, "apply", None)
    with pytest.raises(ArtifactError, match="Noisy does not answer one input twice alike in eval mode"):
        lessen.compress(Noisy(), Mine(Noisy), ROWS, margin=0.5)


@pytest.mark.parametrize(
    ("network", "step"),
    [
        *[(Normed, ROWS), (Parametrised, "emb-hash"), (Scripted, ROWS), (Scripted, "retrain"), (Compiled, ROWS)],
        *[(Coarse, "smoothquant"), (Named, "linear-half"), (Named, "weight-clustering"), (Named, "emb-cel")],
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value)[:12],
)
def test_it_comes_back_into_a_new_model_and_answers_alike(network, step, tmp_path):
    task = Mine(network)
    trade = lessen.compress(network(), task, step, margin=0.9)
    trade.save(tmp_path / "small")
    given = network()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    again = lessen.load(tmp_path / "small", model=given)
    assert torch.equal(again(task.ids), trade.model(task.ids))
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


def test_a_layer_whose_forward_is_kept_is_not_wrapped():
    with pytest.raises(InputError, match="calls keeps the layer 'hidden' outside"):
        lessen.compress(Bound(), Mine(Bound), {"smoothquant": {"only": "hidden"}}, margin=0.5)


def test_float8_is_asked_for_finiteness_in_another_type():
    model = Plain()
    model.register_buffer("eighth", torch.ones(3).to(torch.float8_e4m3fn))
    check_finite(model, "the model")
    model.eighth = torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)
    with pytest.raises(LessenError, match=r"eighth \(1 of 2 values\)"):
        check_finite(model, "the model")


def test_folding_passes_by_layers_of_no_width():
    class Thin(Plain):
        def __init__(self):
            super().__init__()
            self.into, self.back = nn.Linear(12, 0), nn.Linear(0, 12)

        def mixed(self, rows):
            return rows + self.back(self.into(rows))

    with suppress(NothingMatchedError):  # what it finds to fold is another test's matter
        lessen.compress(Thin(), Mine(Thin), "fold", margin=0.9)
