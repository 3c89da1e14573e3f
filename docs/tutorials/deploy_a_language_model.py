"""# Deploy a language model

From a folder to four bits, and from there to llama.cpp, onnxruntime and transformers, with the codes that were
measured. The model here is tiny and random, so that the page runs in seconds; yours is a folder with its tokenizer.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lessen.cli import execute

torch.manual_seed(0)

# %% [markdown]
# ## A folder with a tokenizer

config = transformers.LlamaConfig(
    vocab_size=270,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.2,
)
model = transformers.LlamaForCausalLM(config).eval()
model.save_pretrained("my-llama")

text = ["the cat sat on a mat and the dog ran", "a dog and a cat ran; the mat sat still"]
made = Tokenizer(models.BPE())
made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
made.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
made.train_from_iterator(text, trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False))
words = transformers.PreTrainedTokenizerFast(tokenizer_object=made)
words.save_pretrained("my-llama")
Path("text.txt").write_text("\n\n".join(" ".join(text) for _ in range(20)))

# %% [markdown]
# ## Four bits
#
# `lessen compress my-llama --text text.txt --step gptq:bits=4,group=32,zeros=whole --out small`
#
# The artifact holds weights, configuration and tokenizer: `lessen generate small --prompt "the cat" --completion` needs
# nothing else. `zeros=whole` keeps zero points whole, as the containers below need them (so does `symmetric=true`).

step = "gptq:bits=4,group=32,zeros=whole"
assert execute(["compress", "my-llama", "--text", "text.txt", "--step", step, "--out", "small"]) == 0

# %% [markdown]
# ## Three runtimes
#
# `lessen export small --to onnx --out small.onnx`, `--to gguf --out small.gguf`, `--to hf --out folder`

for to, out in (("onnx", "small.onnx"), ("gguf", "small.gguf"), ("hf", "packed")):
    assert execute(["export", "small", "--to", to, "--out", out]) == 0
assert execute(["export", "small", "--to", "hf", "--dense", "--out", "dense"]) == 0

# %% [markdown]
# ## Decoding under onnxruntime
#
# The graph takes the tokens that are new and the keys and values of those before, and gives logits and the longer keys
# and values. That is all a greedy loop needs.

session = onnxruntime.InferenceSession("small.onnx", providers=["CPUExecutionProvider"])
past = {
    one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32)
    for one in session.get_inputs()
    if one.name.startswith("past")
}
prompt = words("the cat sat")["input_ids"]
emitted, new, length = [], np.array([prompt]), 0
for _ in range(24):
    length += new.shape[1]
    feeds = {"input_ids": new, "attention_mask": np.ones((1, length), np.int64), **past}
    logits, *present = session.run(None, feeds)
    past = dict(zip(past, present, strict=True))
    emitted.append(int(logits[0, -1].argmax()))
    new = np.array([emitted[-1:]])

# %% [markdown]
# ## The same tokens
#
# The dense folder is plain transformers, in float32. It says the same.

plain = transformers.AutoModelForCausalLM.from_pretrained("dense").eval()
ids = torch.tensor([prompt])
mask = torch.ones_like(ids)
wanted = plain.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
assert wanted[0, len(prompt) :].tolist() == emitted
print("onnxruntime and transformers wrote the same", len(emitted), "tokens")
for name in ("my-llama/model.safetensors", "small/model.safetensors", "small.onnx", "small.gguf"):
    print(f"{name:28}{Path(name).stat().st_size:>10,} bytes")
