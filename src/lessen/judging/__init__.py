"""The report card of one compact model beside its uncompressed one: every suite asked, in one record."""

from __future__ import annotations

from lessen.judging.card import Card, judge_models, read_card

__all__ = ["Card", "judge_models", "read_card"]
