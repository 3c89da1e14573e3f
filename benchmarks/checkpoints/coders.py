"""Which entropy coder: rANS (constriction), zstd and LZMA on the very symbols that packing a real checkpoint makes.

python -m benchmarks.checkpoints.coders
"""

from __future__ import annotations

import json
import lzma
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

from benchmarks.checkpoints import runs
from lessen.checkpoints import coder, exact, near

ROUNDS = 5


def streams() -> dict[str, np.ndarray]:
    """Return symbols (uint8) of one layer's weight at the end of the run, as the two modes make them."""
    before, after = (torch.load(path, weights_only=True)["model"] for path in runs.ensure("lm")[-2:])
    new, old = (np.concatenate([v.numpy().ravel() for k, v in m.items() if "up.weight" in k]) for m in (after, before))
    residual = new - old
    settings = near.NearSettings()
    width = settings.step * float(np.sqrt(np.mean(residual**2)))
    codes, _ = near.cells(residual, width, settings.dead_zone, 15)
    exponent = ((new.view(np.uint32) >> 23) & 255).astype(np.uint8)
    return {
        "near: codes, one a byte": codes,
        "near: mask, eight a byte": np.packbits(codes != 0),
        "near: levels that are not zero": codes[codes != 0],
        "exact: exponent plane": exponent,
        "exact: bit lengths of the delta": exact._length(
            exact._zigzag(new.view(np.uint32), old.view(np.uint32), "F32")
        ),
    }


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    seconds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        value = call()
        seconds.append(time.process_time() - began)
    return value, statistics.median(seconds)


def main() -> None:
    rows = []
    for name, symbols in streams().items():
        raw = symbols.tobytes()
        ideal = coder.entropy_bytes(np.bincount(symbols))
        coders: list[tuple[str, Callable[[], bytes], Callable[[bytes], Any]]] = [
            ("rANS", lambda s=symbols: coder.encode(s), lambda b, n=symbols.size: coder.decode(b, n)),
            *(
                (f"zstd -{k}", zstandard.ZstdCompressor(level=k).compress, zstandard.ZstdDecompressor().decompress)
                for k in (1, 3, 12)
            ),
            ("LZMA -1", lambda r=raw: lzma.compress(r, preset=1), lzma.decompress),
        ]
        for coder_name, pack, unpack in coders:
            blob, packing = timed(pack if coder_name in ("rANS", "LZMA -1") else lambda p=pack, r=raw: p(r))
            _, unpacking = timed(lambda u=unpack, b=blob: u(b))
            row = {
                "symbols": name,
                "coder": coder_name,
                "bytes_over_entropy": len(blob) / ideal,
                "encode_msymbols_per_cpu_s": symbols.size / max(packing, 1e-9) / 1e6,
                "decode_msymbols_per_cpu_s": symbols.size / max(unpacking, 1e-9) / 1e6,
            }
            rows.append(row)
            print(
                f"{name:34s} {coder_name:9s} {row['bytes_over_entropy']:6.3f} x entropy, "
                f"{row['encode_msymbols_per_cpu_s']:7.1f} / {row['decode_msymbols_per_cpu_s']:7.1f} Msymbols/CPU-s"
            )
    document = {
        "command": "python -m benchmarks.checkpoints.coders",
        "machine": platform.machine(),
        "rounds": ROUNDS,
        "versions": {name: version(name) for name in ("constriction", "zstandard", "numpy", "torch")},
        "rows": rows,
    }
    (Path(__file__).parents[1] / "results" / "checkpoints_coders.json").write_text(
        json.dumps(document, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
