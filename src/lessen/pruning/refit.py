"""Refitting what reads pruned parts, in closed form: least squares on sums over calibration data.

    W' = W + (Y - X W)^T X (X^T X + k I)^-1      of inputs X [rows, in] that are left and outputs Y [rows, out] wanted

The ridge k pulls towards the weights as they are, so that directions which calibration does not show stay.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lessen.errors import NonFiniteError


class Sums:
    """X^T X and (Y - X W)^T X of one linear layer, float64; a bias is an input that is always 1."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer, self.rows = layer, 0
        width = layer.in_features + (layer.bias is not None)
        self.gram = torch.zeros(width, width, dtype=torch.float64)
        self.cross = torch.zeros(layer.out_features, width, dtype=torch.float64)
        self.energy = 0.0
        """Sum of squares of Y - X W."""

    def add(self, inputs: Tensor, missing: Tensor) -> None:
        """Take rows in: inputs [rows, in], and what the layer's answers lack, Y - X W, [rows, out].

        Raises:
            NonFiniteError: NaN or infinity among them.
        """
        inputs, missing = inputs.float(), missing.float()
        if not bool(torch.isfinite(missing).all() & torch.isfinite(inputs).all()):
            raise NonFiniteError("calibration data gave NaN or infinity; clean the train split first")
        if self.layer.bias is not None:
            inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
        self.gram += (inputs.t() @ inputs).double().cpu()
        self.cross += (missing.t() @ inputs).double().cpu()
        self.energy += float(missing.double().square().sum())
        self.rows += len(inputs)

    @torch.no_grad()
    def refit(self, ridge: float) -> float:
        """Change the layer's weights and return the share of the missing energy that stays missing.

        Args:
            ridge: k as a share of the mean of the diagonal of X^T X.
        """
        scale = float(self.gram.diagonal().mean())
        if scale == 0.0 or self.energy == 0.0:
            return 1.0 if self.energy else 0.0
        damped = self.gram + ridge * scale * torch.eye(len(self.gram), dtype=torch.float64)
        change = torch.cholesky_solve(self.cross.t(), torch.linalg.cholesky(damped)).t()
        left = self.energy - 2 * float((change * self.cross).sum()) + float((change @ self.gram * change).sum())
        weight = self.layer.weight
        weight.add_(change[:, : self.layer.in_features].to(weight))
        if self.layer.bias is not None:
            self.layer.bias.add_(change[:, -1].to(weight))
        return max(0.0, left / self.energy)
