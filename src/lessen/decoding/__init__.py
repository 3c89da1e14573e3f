"""Faster decoding by copying: exact, in unpadded batches, and no slower where text does not repeat.

decoder = Decoder(model, tokenizer)
output = decoder.generate(**inputs, max_new_tokens=128)     # what model.generate(...) returns
"""

from lessen.architectures.loading import load_model
from lessen.decoding.compare import compare
from lessen.decoding.cost import CostCurve
from lessen.decoding.decoder import Completion, Decoder
from lessen.decoding.replay import Replay, replay
from lessen.decoding.report import Comparison, DecodeReport

__all__ = [
    "Comparison",
    "Completion",
    "CostCurve",
    "DecodeReport",
    "Decoder",
    "Replay",
    "compare",
    "load_model",
    "replay",
]
