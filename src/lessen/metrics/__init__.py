"""Quality metrics: exact, with intervals by resampling, and exact over streams larger than memory."""

from __future__ import annotations

from lessen.metrics.base import (
    Accuracy,
    Array,
    Floats,
    MeanMetric,
    MeanSquaredError,
    Metric,
    bootstrap_weights,
    split_targets,
)
from lessen.metrics.calibration import (
    CalibrationBin,
    CalibrationRatio,
    calibration_bins,
    calibration_error,
)
from lessen.metrics.clicks import (
    LOGLOSS,
    AreaUnderCurve,
    GroupAreaUnderCurve,
    LogLoss,
    RelativeInformationGain,
)
from lessen.metrics.streaming import StreamedClicks

AUC = AreaUnderCurve()
ACCURACY = Accuracy()
MSE = MeanSquaredError()
RELATIVE_INFORMATION_GAIN = RelativeInformationGain()
CALIBRATION_RATIO = CalibrationRatio()

__all__ = [
    "ACCURACY", "AUC", "CALIBRATION_RATIO", "LOGLOSS", "MSE", "RELATIVE_INFORMATION_GAIN", "Accuracy",
    "AreaUnderCurve", "Array", "CalibrationBin", "CalibrationRatio", "Floats", "GroupAreaUnderCurve", "LogLoss",
    "MeanMetric", "MeanSquaredError", "Metric", "RelativeInformationGain", "StreamedClicks", "bootstrap_weights",
    "calibration_bins", "calibration_error", "split_targets",
]  # fmt: skip
