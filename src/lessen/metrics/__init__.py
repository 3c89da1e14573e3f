"""Quality metrics: exact, with intervals by resampling, and exact over streams larger than memory."""

from __future__ import annotations

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
from lessen.metrics.classes import Accuracy, MeanSquaredError
from lessen.metrics.clicks import (
    LOGLOSS,
    AreaUnderCurve,
    GroupAreaUnderCurve,
    LogLoss,
    RelativeInformationGain,
)
from lessen.metrics.outcomes import Array, Outcomes
from lessen.metrics.streaming import StreamedClicks

AUC = AreaUnderCurve()
ACCURACY = Accuracy()
GAUC = GroupAreaUnderCurve()
MSE = MeanSquaredError()
RELATIVE_INFORMATION_GAIN = RelativeInformationGain()
CALIBRATION_RATIO = CalibrationRatio()

__all__ = [
    "ACCURACY", "AUC", "CALIBRATION_RATIO", "GAUC", "LOGLOSS", "MSE", "RELATIVE_INFORMATION_GAIN", "Accuracy",
    "AreaUnderCurve", "Array", "CalibrationBin", "CalibrationRatio", "Floats", "GroupAreaUnderCurve", "LogLoss",
    "MeanMetric", "MeanSquaredError", "Metric", "Outcomes", "RelativeInformationGain", "StreamedClicks",
    "bootstrap_weights", "calibration_bins", "calibration_error", "check_reads", "describe_metrics", "find_metric",
    "split_targets",
]  # fmt: skip
