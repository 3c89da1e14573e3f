"""Imported models beside FuxiCTR itself: random weights in its own classes, the largest difference of probabilities.

python -m benchmarks.ctr.fuxictr_import --fuxictr FOLDER    a checkout of reczoo/FuxiCTR 2.3.10, requirements installed
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from lessen.environment import environment
from lessen.files import atomic_write, dump_json
from lessen.importers.fuxictr import import_fuxictr
from lessen.importers.fuxictr_weights import WITH_FIRST_ORDER

ZOO = {
    "lr": ("LR/src", "LR"),
    "fm": ("FM/src", "FM"),
    "dnn": ("DNN/DNN_torch/src", "DNN"),
    "ipnn": ("PNN/src", "PNN"),
    "deepfm": ("DeepFM/DeepFM_torch/src", "DeepFM"),
    "dcn": ("DCN/DCN_torch/src", "DCN"),
    "dcnv2": ("DCNv2/src", "DCNv2"),
    "xdeepfm": ("xDeepFM/src", "xDeepFM"),
}
DIM, ROWS = 4, 500
SIZES = {"user": 9, "item": 12, "hour": 6}
SHAPES: dict[str, Any] = {
    "hidden_units": [8, 6],
    "dnn_hidden_units": [8, 6],
    "parallel_dnn_hidden_units": [8, 6],
    "cin_hidden_units": [5, 3],
    "num_cross_layers": 2,
    "model_structure": "parallel",
    "use_low_rank_mixture": False,
    "embedding_dim": DIM,
    "net_dropout": 0.2,
}
TRAINING: dict[str, Any] = {
    "gpu": -1,
    "optimizer": "adam",
    "loss": "binary_crossentropy",
    "task": "binary_classification",
    "metrics": ["AUC"],
    "monitor": "AUC",
    "monitor_mode": "max",
    "verbose": 0,
}


def described(sequence: bool) -> list[dict[str, dict[str, Any]]]:
    """Return the fields, numbers between ids, so that their order is not ours."""
    known = {
        name: {"source": "", "type": "categorical", "padding_idx": 0, "vocab_size": n} for name, n in SIZES.items()
    }
    price, age = ({name: {"source": "", "type": "numeric"}} for name in ("price", "age"))
    fields = [price, {"user": known["user"]}, {"item": known["item"]}, age, {"hour": known["hour"]}]
    if sequence:
        pooled = {"type": "sequence", "max_len": 4, "feature_encoder": "layers.MaskedAveragePooling()"}
        fields.insert(3, {"history": {**known["item"], **pooled, "share_embedding": "item"}})
    return fields


def batch(names: list[str]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = {name: torch.randint(0, size, (ROWS,), generator=generator) for name, size in SIZES.items()}
    values |= {"price": torch.rand(ROWS, generator=generator), "age": torch.randn(ROWS, generator=generator)}
    values["history"] = torch.randint(0, SIZES["item"], (ROWS, 4), generator=generator)
    return {name: values[name] for name in names}


def difference(root: Path, work: Path, model: str, sequence: bool, batch_norm: bool) -> float:
    """Build FuxiCTR's model, fill it with random numbers, import it, and compare."""
    from fuxictr.features import FeatureMap  # type: ignore[import-not-found, import-untyped, unused-ignore]

    fields, path = described(sequence), work / "feature_map.json"
    path.write_text(
        json.dumps(
            {
                "dataset_id": "x",
                "num_fields": len(fields),
                "total_features": 99,
                "input_length": 9,
                "labels": ["click"],
                "features": fields,
            }
        )
    )
    feature_map = FeatureMap("x", str(work))
    feature_map.load(str(path), {"embedding_dim": DIM})
    folder, name = ZOO[model]
    spec = importlib.util.spec_from_file_location(name, root / "model_zoo" / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    options = {**SHAPES, **TRAINING, "batch_norm": batch_norm, "model_root": f"{work}/"}
    network = getattr(module, name)(feature_map, **options)
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if "running_var" in key else torch.randn_like(value) / 2)
            if "embedding_layers" in key and len(value) in SIZES.values():
                value[0] = 0.0  # padding
    torch.save(network.state_dict(), work / "x.model")
    given = batch([next(iter(field)) for field in fields])
    network.eval()
    network.get_inputs = lambda inputs: inputs
    found = import_fuxictr(path, work / "x.model", model)
    with torch.no_grad():
        theirs = network(given)["y_pred"].double().reshape(-1)
        ours = torch.sigmoid(found.model(**found.inputs(given)).double())
    return float((theirs - ours).abs().max())


def main() -> None:
    """Print one line a case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fuxictr", type=Path, required=True)
    root = parser.parse_args().fuxictr
    sys.path.insert(0, str(root))
    results = []
    with tempfile.TemporaryDirectory() as work:
        for model in ZOO:
            for sequence in (False,) if model in WITH_FIRST_ORDER else (False, True):
                for batch_norm in (False, True):
                    found = difference(root, Path(work), model, sequence, batch_norm)
                    results.append(
                        {"model": model, "sequence": sequence, "batch_norm": batch_norm, "difference": found}
                    )
                    print(f"{model:8} sequence {sequence!s:5} batch norm {batch_norm!s:5} {found:.1e}")
    target = Path(__file__).parents[1] / "results" / "fuxictr_import.json"
    command = "python -m benchmarks.ctr.fuxictr_import --fuxictr FOLDER"
    record = {"command": command, "peer": "FuxiCTR 2.3.10, commit 0245987", "rows": ROWS, "env": environment()}
    atomic_write(target, dump_json({**record, "results": results}))


if __name__ == "__main__":
    main()
