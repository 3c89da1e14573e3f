"""Calibration holds little beyond the model: a block, its activations, one layer's curvature and the solver's copies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the [hf] extra is not installed")
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's high-water mark")

WIDE, HIDDEN, BATCHES, TOKENS = 256, 1024, 24, 256
SCRIPT = f"""
import gc, json, sys
from pathlib import Path
import torch, transformers
from lessen.method import Context
from lessen.methods.weights.gptq import GPTQ
from lessen.testing.toys import TableTask

class Words(TableTask):
    name = "words"
    def __init__(self): pass
    def batches(self, split, seed=0):
        draw = torch.Generator().manual_seed(0)
        return [({{"input_ids": torch.randint(512, (1, {TOKENS}), generator=draw), "use_cache": False}}, None)] * {BATCHES}
    def forward(self, model, batch): return model(**batch[0]).logits
    def loss(self, model, batch): return self.forward(model, batch).float().logsumexp(-1).mean()

def status(name):
    return next(1024 * int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))

torch.set_num_threads(1)
torch.manual_seed(0)
shape = dict(hidden_size={WIDE}, intermediate_size={HIDDEN}, num_attention_heads=4, num_hidden_layers=6, vocab_size=512)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).eval()
GPTQ(bits=4, table_bits=None, calibration_batches=1, only="model.layers.5.mlp.up_proj").apply(model, Words(), Context())
gc.collect()
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
GPTQ(bits=4, table_bits=None, calibration_batches={BATCHES}, **json.loads(sys.argv[1])).apply(model, Words(), Context())
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("knobs", [{}, {"hessian": "output", "blocks_a_pass": 1}], ids=["input", "output"])
def test_memory_beyond_the_model_is_a_blocks(knobs):
    done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(knobs)], capture_output=True, text=True, check=True)
    grown = int(done.stdout.split()[-1])
    block = 4 * (4 * WIDE**2 + 3 * WIDE * HIDDEN)
    activations = 4 * 2 * BATCHES * TOKENS * WIDE + 4 * TOKENS * (8 * WIDE + 4 * HIDDEN)
    solver = 2 * 8 * HIDDEN**2 + 4 * (6 * WIDE**2 + HIDDEN**2)  # two float64 copies, and the curvatures of one block
    slack = 60e6  # what allocators keep; a thread for each batch kept some 10 MB each
    print(
        f"{grown / 1e6:.0f} MB; block {block / 1e6:.0f}, activations {activations / 1e6:.0f}, solver {solver / 1e6:.0f}"
    )
    assert grown < block + activations + solver + slack
