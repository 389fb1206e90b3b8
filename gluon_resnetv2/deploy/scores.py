"""From a network's outputs to probabilities and classes."""

from __future__ import annotations

import numpy as np

LEAST = 1e-30  # a probability whose logarithm is still taken


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes) of logits, computed in float64, as float32."""
    powers = np.exp(np.float64(logits) - np.max(logits, axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype("float32")


def log(probabilities: np.ndarray) -> np.ndarray:
    """Logits that (N, classes) probabilities are the softmax of."""
    return np.log(np.maximum(np.float64(probabilities), LEAST))


def likeliest(row: np.ndarray, count: int) -> np.ndarray:
    """The indices of a row's `count` largest values, largest first; of equal ones the first."""
    return np.argsort(-row, kind="stable")[:count]
