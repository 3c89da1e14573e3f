"""A program that imports every module of lessen where no extra can be imported; it prints `all` at the end."""

from __future__ import annotations

BARE = """
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"transformers", "ray", "optuna", "onnx", "onnxruntime", "onnxscript", "sklearn",
                                  "mlflow", "gguf", "zstandard", "constriction", "tokenizers", "aeon", "scipy", "llvmlite"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import lessen
for info in pkgutil.walk_packages(lessen.__path__, "lessen."):
    if not info.name.endswith("__main__"):
        importlib.import_module(info.name)
print("all")
"""
