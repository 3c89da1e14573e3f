"""The packaged settings: complete, buildable, and equal to the published parameter counts."""

from __future__ import annotations

import inspect

import pytest
import torch

from lessen.data.columns import IdField, Layout
from lessen.errors import ConfigError
from lessen.stored.fields import Segment
from lessen.tasks.ctr.bars.datasets import DATASETS, data_of
from lessen.tasks.ctr.bars.recipes import load_recipe, parse_sheet, published_models, sheets, variants
from lessen.tasks.ctr.models import MODELS

PAIRS = [(sheet.dataset, model) for sheet in sheets().values() for model in sheet.models]
# rows of FuxiCTR's tables: the parameter count of LR less its bias and numeric weights
TABLE_ROWS = {"Frappe_x1": 5_389, "MovielensLatest_x1": 90_239, "Criteo_x1": 2_086_303, "Avazu_x1": 1_298_599}


def test_all_six_data_sets_and_the_anchors_of_the_leaderboard() -> None:
    assert len(variants()) == 8
    assert {data_of(name).name for name in variants()} == set(DATASETS)
    assert len(PAIRS) == 92
    anchors = {
        ("Frappe_x1", "lr"): (0.9356, 0.3076),
        ("Frappe_x1", "deepfm"): (0.9842, 0.1482),
        ("Criteo_x4_001", "fm"): (0.8086, 0.4431),
        ("Criteo_x4_001", "dcnv2"): (0.8145, 0.4376),
        ("MovielensLatest_x1", "finalmlp"): (0.9720, 0.1966),
        ("Avazu_x4_002", "fgcnn"): (0.7971, 0.3696),
    }
    for (dataset, model), (auc, logloss) in anchors.items():
        found = published_models(dataset)[model]
        assert (round(found.auc, 4), round(found.logloss, 4)) == (auc, logloss)


@pytest.mark.parametrize(("dataset", "model"), PAIRS)
def test_every_argument_is_one_of_the_model(dataset: str, model: str) -> None:
    recipe = load_recipe(dataset, model)
    assert set(recipe.entry.arguments) <= set(inspect.signature(MODELS[recipe.network]).parameters)
    assert recipe.training.learning_rate == 1e-3
    five = recipe.entry.five_auc
    assert len(five) in (0, 5)
    assert recipe.entry.published.auc == (five[0] if five else recipe.entry.published.auc)


def _layout(dataset: str, rows: int) -> Layout:
    """As many fields as the data set has, with `rows` table rows after the padding row."""
    data = data_of(dataset)
    names, start, fields, segments = data.categorical, 1, [], []
    sizes = {"user": 957 + 1, "item": 4_082 + 1} if dataset == "Frappe_x1" else {}
    left = rows - sum(sizes.values())
    free = [name for name in names if name not in sizes]
    for place, name in enumerate(names):
        count = sizes.get(name) or left // len(free) + (left % len(free) if name == free[-1] else 0)
        segments.append(Segment(name, start, count))
        fields.append(IdField(name, "categorical", place, 1, name))
        start += count
    return Layout(tuple(fields), tuple(segments), data.numeric)


@pytest.mark.parametrize(
    ("dataset", "model"),
    [(d, m) for d, m in PAIRS if d in TABLE_ROWS and m not in ("dnn", "finalmlp")],
)
def test_parameter_counts_are_those_of_the_published_logs(dataset: str, model: str) -> None:
    """With as many table rows as FuxiCTR had (padding rows included), every weight of the model is accounted for.

    BARS' DNN logged its MLP twice, see the sheet; FinalMLP is in a test of its own.
    """
    recipe = load_recipe(dataset, model)
    with torch.device("meta"):
        built = MODELS[recipe.network](
            _layout(dataset, TABLE_ROWS[dataset] - 1), dim=recipe.dim, **recipe.entry.arguments
        )
    count = sum(p.numel() for p in built.parameters())
    assert count == recipe.entry.published.parameters


def test_unknown_names_are_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no data set 'Frappe_x2' here; did you mean 'Frappe_x1'"):
        load_recipe("Frappe_x2", "lr")
    with pytest.raises(ConfigError, match=r"no model is called 'deepfn'; did you mean 'deepfm'"):
        load_recipe("Frappe_x1", "deepfn")
    with pytest.raises(ConfigError, match=r"published no settings and no figure for fgcnn on Frappe_x1"):
        load_recipe("Frappe_x1", "fgcnn")
    with pytest.raises(ConfigError, match="published no settings"):
        load_recipe("Criteo_x1", "din")


def test_a_broken_file_is_named() -> None:
    good = "dataset: D\ntraining: {dim: 1, batch_size: 2, learning_rate: 0.1, epochs: 1, patience: 1, minimum_count: 1, monitor: auc, seed: 1}\n"
    entry = "{published: {auc: 0.5, logloss: 0.6}, table_l2: 0}"
    assert parse_sheet(good + f"models: {{lr: {entry}}}", "d.yaml").dataset == "D"
    with pytest.raises(ConfigError, match="no model is called 'lrr'"):
        parse_sheet(good + f"models: {{lrr: {entry}}}", "d.yaml")
    with pytest.raises(ConfigError, match=r"d.yaml: recipe.models.lr.table_l2 = 'x' is not accepted"):
        parse_sheet(good + "models: {lr: {published: {auc: 0.5, logloss: 0.6}, table_l2: x}}", "d.yaml")
