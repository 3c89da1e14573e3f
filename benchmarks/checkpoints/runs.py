"""Two real training runs whose checkpoints the other checkpoint benchmarks read: a language model and a CTR model.

    python -m benchmarks.checkpoints.runs lm      # 5.6M-parameter byte-level Transformer, AdamW, 20 checkpoints
    python -m benchmarks.checkpoints.runs ctr     # 4.8M parameters in sparse tables, SparseAdam + Adam, 20 checkpoints

The text is the source of the Python standard library of the interpreter that runs this: real, local, never copied.
Checkpoints go to the cache folder (env LESSEN_CACHE), are kept there, and are never committed.
"""

from __future__ import annotations

import argparse
import math
import os
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHECKPOINTS = 20
LM_STEPS, LM_BATCH, LM_LENGTH = 800, 8, 64
CTR_STEPS, CTR_BATCH = 800, 512
TABLES, ROWS, WIDTH = 6, 50_000, 16


def cache() -> Path:
    root = Path(os.environ.get("LESSEN_CACHE", Path.home() / ".cache" / "lessen"))
    return root / "benchmark-checkpoints"


def text() -> tuple[np.ndarray, np.ndarray]:
    """Return training and validation bytes (uint8), split by file so that none is in both."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(
        path for path in library.rglob("*.py") if "site-packages" not in path.parts and "test" not in path.parts
    )
    train, valid = bytearray(), bytearray()
    for position, path in enumerate(files):
        (valid if position % 20 == 0 else train).extend(path.read_bytes())
    return np.frombuffer(bytes(train), np.uint8), np.frombuffer(bytes(valid), np.uint8)


# -- language model --------------------------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class LanguageModel(nn.Module):
    def __init__(self, width: int = 256, layers: int = 7, heads: int = 4, length: int = 128) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(256, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.position.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def loss(self, batch: Tensor) -> Tensor:
        return F.cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def lm_batch(data: np.ndarray, step: int, seed: int, size: int = LM_BATCH) -> Tensor:
    """Return int64 [size, length + 1]: a pure function of (step, seed), so that a resumed run sees the same order."""
    starts = np.random.default_rng([seed, step]).integers(0, len(data) - LM_LENGTH - 1, size)
    return torch.from_numpy(np.stack([data[s : s + LM_LENGTH + 1] for s in starts]).astype(np.int64))


def lm_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.1)


def lm_rate(step: int) -> float:
    """Learning rate of `step`: 50 steps of warm-up, then a cosine down to a tenth."""
    if step < 50:
        return 1e-3 * (step + 1) / 50
    return 1e-3 * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - 50) / (LM_STEPS - 50))))


def lm_step(model: Any, optimizer: torch.optim.Optimizer, data: np.ndarray, step: int, seed: int) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lm_rate(step)
    optimizer.zero_grad(set_to_none=True)
    loss = model.loss(lm_batch(data, step, seed))
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def lm_validate(model: Any, data: np.ndarray, batches: int = 24) -> float:
    """Return mean loss in nats per byte on a fixed set of validation windows."""
    model.eval()
    losses = [float(model.loss(lm_batch(data, k, 999, 32))) for k in range(batches)]
    model.train()
    return sum(losses) / len(losses)


def run_lm(out: Path) -> None:
    train, valid = text()
    torch.manual_seed(0)
    model = LanguageModel()
    optimizer = lm_optimizer(model)
    print(f"language model: {sum(p.numel() for p in model.parameters()):,} parameters, {len(train):,} bytes of text")
    _loop(
        out,
        model,
        {"optimizer": optimizer},
        LM_STEPS,
        step=lambda k: lm_step(model, optimizer, train, k, 0),
        validate=lambda: lm_validate(model, valid),
    )


# -- CTR model with sparse tables -------------------------------------------------------------------------------
class ClickModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS, WIDTH, sparse=True) for _ in range(TABLES))
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.01)
        self.tower = nn.Sequential(nn.Linear(TABLES * WIDTH, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, ids: Tensor) -> Tensor:
        columns = [table(ids[:, k]) for k, table in enumerate(self.tables)]
        return self.tower(torch.cat(columns, 1)).squeeze(1)


def ctr_batch(data: np.ndarray, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return ids int64 [batch, tables] and labels float32 [batch].

    Column k is the hash of the k + 1 bytes before a random position: real, Zipf-distributed ids. The label says
    whether the byte at the position is a lower-case letter.
    """
    where = np.random.default_rng([seed, step]).integers(TABLES, len(data), CTR_BATCH)
    hashed, columns = np.zeros(CTR_BATCH, np.uint64), []
    for k in range(1, TABLES + 1):
        hashed = (hashed * np.uint64(1_000_003) + data[where - k] + np.uint64(1)) & np.uint64(2**40 - 1)
        columns.append((hashed * np.uint64(2_654_435_761) >> np.uint64(13)) % np.uint64(ROWS))
    label = (data[where] >= 97) & (data[where] <= 122)
    return torch.from_numpy(np.stack(columns, 1).astype(np.int64)), torch.from_numpy(label.astype(np.float32))


def ctr_optimizers(model: ClickModel) -> dict[str, torch.optim.Optimizer]:
    return {
        "sparse": torch.optim.SparseAdam(list(model.tables.parameters()), lr=3e-3),
        "dense": torch.optim.Adam(model.tower.parameters(), lr=1e-3),
    }


def ctr_step(
    model: ClickModel, optimizers: dict[str, torch.optim.Optimizer], data: np.ndarray, step: int, seed: int
) -> float:
    ids, label = ctr_batch(data, step, seed)
    for optimizer in optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    loss = F.binary_cross_entropy_with_logits(model(ids), label)
    loss.backward()
    for optimizer in optimizers.values():
        optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def ctr_validate(model: ClickModel, data: np.ndarray) -> float:
    losses = []
    for k in range(40):
        ids, label = ctr_batch(data, k, 999)
        losses.append(float(F.binary_cross_entropy_with_logits(model(ids), label)))
    return sum(losses) / len(losses)


def run_ctr(out: Path) -> None:
    train, valid = text()
    torch.manual_seed(0)
    model = ClickModel()
    optimizers = ctr_optimizers(model)
    print(f"CTR model: {sum(p.numel() for p in model.parameters()):,} parameters")
    _loop(
        out,
        model,
        optimizers,
        CTR_STEPS,
        step=lambda k: ctr_step(model, optimizers, train, k, 0),
        validate=lambda: ctr_validate(model, valid),
    )


def _loop(out: Path, model: nn.Module, optimizers: dict[str, Any], steps: int, step: Any, validate: Any) -> None:
    out.mkdir(parents=True, exist_ok=True)
    every, began, mean = steps // CHECKPOINTS, time.time(), 0.0
    for k in range(steps):
        mean = 0.95 * mean + 0.05 * step(k) if k else step(k)
        if (k + 1) % every == 0:
            state = {"model": model.state_dict(), "step": k + 1, "rng": torch.get_rng_state()}
            torch.save(state | {name: o.state_dict() for name, o in optimizers.items()}, out / f"step-{k + 1}.pt")
            print(f"step {k + 1:5d}  train {mean:.4f}  valid {validate():.4f}  {time.time() - began:.0f} s", flush=True)


def ensure(name: str) -> list[Path]:
    """Return the checkpoints of run `lm` or `ctr` in order, training first if they are not there."""
    out = cache() / name
    steps = LM_STEPS if name == "lm" else CTR_STEPS
    wanted = [out / f"step-{k}.pt" for k in range(steps // CHECKPOINTS, steps + 1, steps // CHECKPOINTS)]
    if not all(path.exists() for path in wanted):
        (run_lm if name == "lm" else run_ctr)(out)
    return wanted


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=["lm", "ctr"])
    ensure(parser.parse_args().run)
