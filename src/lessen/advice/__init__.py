"""What to try on a model, in which order, with what it would leave: rules, forecasts and reasons before any run."""

from lessen.advice.advise import Advice, Line, advise

__all__ = ["Advice", "Line", "advise"]
