"""Writing a causal language model as a GGUF file that llama.cpp opens: the codes that were measured, not rounded again.

blocks      rows of a weight as GGUF blocks          hosts   which architecture, its numbers and names of tensors
tokenizer   vocabulary, merges, scores, template     write   the file
"""
