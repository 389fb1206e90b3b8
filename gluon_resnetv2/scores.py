"""What a network's outputs say: probabilities, classes, how far two of them lie apart."""

from __future__ import annotations

import numpy as np

LEAST = 1e-30  # a probability whose logarithm is still taken


def softmax(logits: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """Probabilities (N, classes) of logits, computed in float64, as `dtype`."""
    powers = np.exp(np.float64(logits) - np.max(logits, axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(dtype)


def log(probabilities: np.ndarray) -> np.ndarray:
    """Logits that (N, classes) probabilities are the softmax of."""
    return np.log(np.maximum(np.float64(probabilities), LEAST))


def likeliest(row: np.ndarray, count: int) -> np.ndarray:
    """The indices of a row's `count` largest values, largest first; of equal ones the first."""
    return np.argsort(-row, kind="stable")[:count]


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference between two arrays of one shape, over the largest value expected."""
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
