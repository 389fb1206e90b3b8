"""The pooled features of a network: what its graph computes up to the classifier."""

from __future__ import annotations

import json
from collections.abc import Callable

import mxnet as mx
import numpy as np

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats.pair import Pair

CLASSIFIERS = ("FullyConnected", "_sg_mkldnn_fully_connected")
SOFTMAX = ("softmax", "SoftmaxOutput")  # operators that make probabilities of logits
BEHIND = (*SOFTMAX, "amp_cast")  # operators between a classifier and the graph's output


def features(pair: Pair, name: str) -> tuple[mx.sym.Symbol, Callable[[np.ndarray], np.ndarray]]:
    """The graph that ends where the classifier's begins, and the classifier.

    Args:
        name: of the pair, for messages.

    Returns:
        A symbol that gives the features (N, channels), and what makes logits (N, classes) of them,
        in float64.

    Raises:
        UserError: the graph does not end in a classifier with float32 weights.
    """
    nodes, ((head, *_), *_) = pair.graph["nodes"], pair.graph["heads"]
    while nodes[head]["op"] in BEHIND:
        head = nodes[head]["inputs"][0][0]
    source, *learned = nodes[head]["inputs"]
    arrays = [pair.parameters.get(nodes[index]["name"]) for index, *_ in learned]
    if nodes[head]["op"] not in CLASSIFIERS or any(
        array is None or array.dtype != np.float32 for array in arrays
    ):
        raise UserError(
            f"{name} does not end in a float32 classifier, so its features can't be had"
        )
    weight, bias = np.float64(arrays[0]), np.float64(arrays[1] if len(arrays) > 1 else 0)
    symbol = mx.sym.flatten(mx.sym.load_json(json.dumps({**pair.graph, "heads": [source]})))
    return symbol, lambda found: found @ weight.T + bias
