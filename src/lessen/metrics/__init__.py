"""Quality metrics: exact, with intervals by resampling, and exact over streams larger than memory."""

from __future__ import annotations

from lessen.metrics.agreement import CosineAgreement, RelativeError
from lessen.metrics.base import (
    Floats,
    MeanMetric,
    Metric,
    bootstrap_weights,
    check_reads,
    describe_metrics,
    find_metric,
    split_targets,
)
from lessen.metrics.calibration import (
    CalibrationBin,
    CalibrationRatio,
    calibration_bins,
    calibration_error,
)
from lessen.metrics.chance import chance_of, standards
from lessen.metrics.classes import (
    Accuracy,
    ClassRecall,
    ExpectedCalibrationError,
    MacroF1,
    MacroRecall,
    MeanSquaredError,
    TopAccuracy,
)
from lessen.metrics.clicks import (
    LOGLOSS,
    AreaUnderCurve,
    GroupAreaUnderCurve,
    LogLoss,
    RelativeInformationGain,
)
from lessen.metrics.correlation import Spearman
from lessen.metrics.images import PSNR, BitsPerPixel, MultiScaleSSIM
from lessen.metrics.language import BitsPerByte, ExactMatch, NextTokenAccuracy, Perplexity, RougeL, TokenF1
from lessen.metrics.outcomes import Array, Outcomes
from lessen.metrics.retrieval import MRR, NDCG, MeanAveragePrecision, Recall
from lessen.metrics.streaming import StreamedClicks

AUC = AreaUnderCurve()
ACCURACY = Accuracy()
GAUC = GroupAreaUnderCurve()
MSE = MeanSquaredError()
RELATIVE_INFORMATION_GAIN = RelativeInformationGain()
CALIBRATION_RATIO = CalibrationRatio()
PERPLEXITY = Perplexity()
BITS_PER_BYTE = BitsPerByte()
NEXT_TOKEN = NextTokenAccuracy()

__all__ = [
    "ACCURACY", "AUC", "BITS_PER_BYTE", "CALIBRATION_RATIO", "GAUC", "LOGLOSS", "MRR", "MSE", "NDCG", "NEXT_TOKEN",
    "PERPLEXITY", "PSNR", "RELATIVE_INFORMATION_GAIN", "Accuracy", "AreaUnderCurve", "Array", "BitsPerByte",
    "BitsPerPixel", "CalibrationBin", "CalibrationRatio", "ClassRecall", "CosineAgreement", "ExactMatch",
    "ExpectedCalibrationError", "Floats", "GroupAreaUnderCurve", "LogLoss", "MacroF1", "MacroRecall",
    "MeanAveragePrecision", "MeanMetric", "MeanSquaredError", "Metric", "MultiScaleSSIM", "NextTokenAccuracy",
    "Outcomes", "Perplexity", "Recall", "RelativeError", "RelativeInformationGain", "RougeL", "Spearman",
    "StreamedClicks", "TokenF1", "TopAccuracy", "bootstrap_weights", "calibration_bins", "calibration_error",
    "chance_of", "check_reads", "describe_metrics", "find_metric", "split_targets", "standards",
]  # fmt: skip
