"""What the test error of a linear head must be: the eigenframework of random features (Simon et al., arXiv 2311.14646).

    n = sum L_i + ridge / kappa        k = sum L_i + k kappa / gamma        L_i = lambda_i / (lambda_i + gamma)

It gives the test error of k random features fitted on n examples, from eigenvalues of the features' covariance and the
target's coefficients. More width never hurts with the ridge tuned: what a cut of width costs beyond this is the cut's.
"""

from __future__ import annotations

import numpy as np

from lessen.metrics import Floats

_STEPS = 60


def solve(n: float, k: float, ridge: float, eigenvalues: Floats) -> tuple[float, float]:
    """Return kappa and gamma, by nested bisection of their logarithms.

    Args:
        n: examples; k: features; ridge: above 0, of K = G G^T / k, not divided by n.
    """
    low, high = np.log10(ridge / n), 15.0  # below ridge / n the first equation has no solution
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        kappa = 10.0**middle
        gamma = _gamma(k, kappa, eigenvalues)
        spent = float((eigenvalues / (eigenvalues + gamma)).sum()) + ridge / kappa
        low, high = (middle, high) if spent > n else (low, middle)
    return 10.0**high, _gamma(k, 10.0**high, eigenvalues)


def _gamma(k: float, kappa: float, eigenvalues: Floats) -> float:
    """Return gamma >= kappa for which k = sum L_i + k kappa / gamma."""
    low, high = np.log10(kappa), 15.0
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        gamma = 10.0**middle
        used = float((eigenvalues / (eigenvalues + gamma)).sum()) + k * kappa / gamma
        low, high = (middle, high) if used > k else (low, middle)
    return float(10.0**high)


def predicted_error(n: float, k: float, ridge: float, eigenvalues: Floats, powers: Floats, noise: float = 0.0) -> float:
    """Return the predicted mean squared test error.

    Args:
        powers: squared coefficients v_i^2 of the target along the eigenvectors, summed over outputs; noise: variance.
    """
    kappa, gamma = solve(n, k, ridge, eigenvalues)
    seen = eigenvalues / (eigenvalues + gamma)
    z, q = float(seen.sum()), float((seen**2).sum())
    left = gamma / (eigenvalues + gamma) - kappa * eigenvalues / (eigenvalues + gamma) ** 2 * k / (k - q)
    return float(((left * powers).sum() + noise) / (1.0 - (q * (k - 2.0 * z) + z * z) / (n * (k - q))))


def kernel_error(n: float, ridge: float, eigenvalues: Floats, powers: Floats, noise: float = 0.0) -> float:
    """Return the predicted error of kernel ridge regression: infinitely many features."""
    low, high = np.log10(ridge / n), 15.0
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        kappa = 10.0**middle
        spent = float((eigenvalues / (eigenvalues + kappa)).sum()) + ridge / kappa
        low, high = (middle, high) if spent > n else (low, middle)
    seen = eigenvalues / (eigenvalues + 10.0**high)
    grows = n / (n - float((seen**2).sum()))
    return float(grows * ((((1.0 - seen) ** 2) * powers).sum() + noise))


def of_samples(features: Floats, targets: Floats) -> tuple[Floats, Floats, float]:
    """Return eigenvalues, squared coefficients and the noise, of features [n, width] and targets [n, outputs].

    Both are centred; eigenvectors are scaled to norm sqrt(n), so that coefficients are those of the population's.
    """
    n = len(features)
    left, scale, _ = np.linalg.svd(features, full_matrices=False)
    eigenvalues = scale**2 / n
    kept = eigenvalues > 1e-10 * max(float(eigenvalues[0]), 1e-300)
    powers = ((left[:, kept].T @ targets) ** 2).sum(axis=1) / n
    spread = float((targets**2).sum() / n)
    width = int(kept.sum())
    # chance alone gives each of `width` directions its share of the noise
    noise = max(0.0, (spread - float(powers.sum())) / max(1.0 - width / n, 1.0 / n))
    return eigenvalues[kept], np.maximum(powers - noise / n, 0.0), noise
