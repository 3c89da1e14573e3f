"""The settings and results that BARS-CTR published, one readable YAML file a data set, and how one is looked up."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lessen.errors import ConfigError, explain, nearest
from lessen.files import parse_yaml
from lessen.tasks.ctr.models import MODELS, ModelName

ALIASES = {"criteo_x4": "criteo_x4_001", "avazu_x4": "avazu_x4_001", "dcn-v2": "dcnv2", "youtubednn": "dnn"}
"""What the literature also calls a data set or a model."""


class Published(BaseModel):
    """What the leaderboard's run gave on the test part; `parameters` as its log counts them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    auc: float
    logloss: float
    parameters: int | None = None


class Entry(BaseModel):
    """One model on one data set; what is left out is as the data set's `training` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    published: Published
    five_auc: tuple[float, ...] = ()
    table_l2: float
    builds: ModelName | None = None
    dim: int | None = None
    batch_size: int | None = None
    patience: int | None = None
    arguments: dict[str, Any] = {}


class Training(BaseModel):
    """What all runs on a data set share."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    dim: int
    batch_size: int
    learning_rate: float
    epochs: int
    patience: int
    minimum_count: int
    monitor: Literal["auc", "auc - logloss"]
    seed: int


class Sheet(BaseModel):
    """The file of one data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    dataset: str
    training: Training
    models: dict[str, Entry] = Field(min_length=1)


class Recipe(BaseModel):
    """Everything a run needs to know: data set, model, settings, and what was published for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    dataset: str
    model: ModelName
    training: Training
    entry: Entry

    @property
    def network(self) -> ModelName:
        """Return the model that is built, which one BARS entry names otherwise."""
        return self.entry.builds or self.model

    @property
    def dim(self) -> int:
        """Return the width of the vectors."""
        return self.entry.dim or self.training.dim

    @property
    def batch_size(self) -> int:
        """Return the rows of a step."""
        return self.entry.batch_size or self.training.batch_size

    @property
    def patience(self) -> int:
        """Return the epochs without improvement after which training stops."""
        return self.entry.patience or self.training.patience


@cache
def sheets() -> dict[str, Sheet]:
    """Return the packaged files by lower-case name."""
    found = {}
    for item in sorted((files("lessen.tasks.ctr.bars") / "recipes").iterdir(), key=lambda item: item.name):
        if item.name.endswith(".yaml"):
            found[item.name.removesuffix(".yaml")] = parse_sheet(item.read_text(encoding="utf-8"), item.name)
    return found


def parse_sheet(text: str, where: str) -> Sheet:
    """Read one file. Raises ConfigError naming the key, or the model that does not exist."""
    try:
        sheet = Sheet(**parse_yaml(text, where))
    except (ValidationError, TypeError) as error:
        reason = explain(error, "recipe", Entry.model_fields) if isinstance(error, ValidationError) else str(error)
        raise ConfigError(f"{where}: {reason}") from error
    for name in sheet.models:
        if name not in MODELS:
            raise ConfigError(f"{where}: no model is called {name!r}; {nearest(name, MODELS)}")
    return sheet


def variants() -> list[str]:
    """Return the data sets with their settings, such as Criteo_x4_001 and Criteo_x4_002."""
    return [sheet.dataset for sheet in sheets().values()]


def find_sheet(dataset: str) -> Sheet:
    """Return the file of a data set, whatever its case; x4 alone means x4_001. Raises ConfigError."""
    key = ALIASES.get(dataset.lower(), dataset.lower())
    if key not in sheets():
        raise ConfigError(f"BARS has no data set {dataset!r} here; {nearest(dataset, variants())}")
    return sheets()[key]


def published_models(dataset: str) -> dict[str, Published]:
    """Return what was published for a data set, by model. Raises ConfigError."""
    return {name: entry.published for name, entry in find_sheet(dataset).models.items()}


def load_recipe(dataset: str, model: str) -> Recipe:
    """Return the published settings of a model on a data set.

    Raises:
        ConfigError: the data set or the model does not exist, or BARS published nothing for the pair.
    """
    sheet = find_sheet(dataset)
    name = ALIASES.get(model.lower(), model.lower())
    if name not in MODELS:
        raise ConfigError(f"no model is called {model!r}; {nearest(name, MODELS)}")
    if name not in sheet.models:
        raise ConfigError(
            f"BARS published no settings and no figure for {name} on {sheet.dataset}; it has {', '.join(sheet.models)}"
        )
    return Recipe(dataset=sheet.dataset, model=name, training=sheet.training, entry=sheet.models[name])
