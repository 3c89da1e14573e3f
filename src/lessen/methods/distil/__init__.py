"""Distillation: a model learns from a better one, and costs no more than before."""
