"""lessen makes trained models cost less, and proves what that cost in quality."""

from __future__ import annotations

__version__ = "0.1.0"
