"""How many positions a language model was made for, by whichever name its configuration says it."""

from __future__ import annotations

from typing import Any

CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
"""Fields of configurations; MPT's is `max_seq_len`, beyond which its bias has no entries."""


def context_of(config: Any) -> int | None:
    """Return the positions that a model's configuration (of its text part) names, or None where it names none."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in CONTEXT_NAMES)
    return next((value for value in found if isinstance(value, int) and value > 0), None)
