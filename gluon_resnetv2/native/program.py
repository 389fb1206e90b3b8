"""What the native operator is to compute, as a program for it: see `trunk.cc` for the language."""

from __future__ import annotations

import ast
import json
from typing import NamedTuple

import mxnet as mx

from gluon_resnetv2.errors import UserError

# Words of a convolution's line: what is added, and whether a ReLU follows.
MORE, RELU = 9, 10


class Activation(NamedTuple):
    """What an instruction computes: its number, and how many channels it has."""

    number: int
    channels: int


class Widened(NamedTuple):
    """Every `stride`-th pixel of an activation, and zeros as further channels up to `channels`."""

    source: Activation
    stride: int
    channels: int


class Zeros(NamedTuple):
    """Channels of zeros."""

    channels: int


class Program:
    """The program of a network, from its images to its features.

    Args:
        symbol: the network, traced; its head is the mean over the pixels and a classifier.
        in_channels: of the images.
        training: whether batches are normalised by their own statistics, and activations dropped.

    Attributes:
        text: the instructions.
        inputs: names of the operator's inputs, the images first.
        features: how many the last instruction computes of an image.

    Raises:
        UserError: the operator has no instruction for something in the network.
    """

    def __init__(self, symbol: mx.sym.Symbol, in_channels: int, training: bool = True):
        self._training = training
        self._nodes = json.loads(symbol.tojson())["nodes"]
        self._readers: list[list[int]] = [[] for _ in self._nodes]
        for index, node in enumerate(self._nodes):
            for source, *_ in node["inputs"]:
                self._readers[source].append(index)
        self._lines: list[list] = []  # the words of each
        self._computed: dict[int, Activation | Widened | Zeros] = {}  # by the node's index
        self.inputs: list[str] = []
        self.features = 0
        for index, node in enumerate(self._nodes):
            if node["op"] == "null" or self.features:
                continue
            if not self.inputs:
                first = node["inputs"][0][0]
                self._input(first)
                self._computed[first] = Activation(0, in_channels)
            self._add(index, node)
        self.text = ";".join(" ".join(map(str, line)) for line in self._lines)

    def head(self, features: mx.sym.Symbol) -> mx.sym.Symbol:
        """What the network makes of its features, by MXNet's own operators."""
        made = {self._last: features}
        for index, node in enumerate(self._nodes[self._last + 1 :], self._last + 1):
            if node["op"] == "null":
                made[index] = mx.sym.var(node["name"])
            elif node["op"] == "amp_cast":  # the features are float32
                made[index] = made[node["inputs"][0][0]]
            else:
                given = [made[source] for source, *_ in node["inputs"]]
                operator = getattr(mx.sym, node["op"])
                made[index] = operator(*given, name=node["name"], **node.get("attrs", {}))
        return made[len(self._nodes) - 1]

    def _add(self, index: int, node: dict) -> None:
        """Computes what one node of the graph does."""
        op, attrs = node["op"], {k: _value(v) for k, v in node.get("attrs", {}).items()}
        given = [source for source, *_ in node["inputs"]]
        if op == "amp_cast" or (op == "Dropout" and not self._training):
            self._computed[index] = self._computed[given[0]]  # in the operator's own type
        elif op == "zeros_like":
            self._computed[index] = Zeros(self._computed[given[0]].channels)
        elif op in ("slice", "Concat", "slice_axis"):
            self._computed[index] = self._widened(op, attrs, given, node)
        elif op == "elemwise_add" and self._adds_while_it_convolves(*given):
            self._computed[index] = self._computed[given[0]]
        elif index not in self._computed:  # a ReLU may be part of the instruction before it
            words, channels = self._instruction(op, attrs, given, index, node)
            if op in ("BatchNorm", "Activation") and self._convolves_alone(given[0]):
                activation = self._computed[given[0]]
                line = self._lines[activation.number - 1]
                line[RELU] = words[-1] if op == "BatchNorm" else 1
                if op == "BatchNorm":
                    *_, gamma, beta, mean, variance, eps, _momentum, fixed, _relu = words
                    line += [gamma, beta, mean, variance, eps, fixed]
            else:
                name, *numbers = words
                activation = Activation(len(self._lines) + 1, channels)
                self._lines.append([name, activation.number, *numbers])
            self._computed[index] = activation
            if op == "BatchNorm" and words[-1]:
                (relu,) = self._readers[index]
                self._computed[relu] = activation
            if op == "mean":
                self.features, self._last = channels, index

    def _instruction(self, op, attrs, given, index, node):
        """Its name and all its numbers but `out`, and how many channels it computes."""
        x = self._operand(given[0])
        if op == "Convolution" and _plain_convolution(attrs):
            weight, *bias = map(self._input, given[1:])
            channels = attrs["num_filter"]
            square = attrs["kernel"][0], attrs["stride"][0], attrs["pad"][0]
            return ("conv", x.number, weight, *(bias or [-1]), channels, *square, -1, 0), channels
        if op == "BatchNorm" and attrs.get("axis", 1) == 1 and self._knows_statistics(attrs):
            readers = [self._nodes[reader] for reader in self._readers[index]]
            relu = [one.get("attrs", {}).get("act_type") for one in readers] == ["relu"]
            statistics = map(self._input, given[1:])
            attrs = {"eps": 1e-3, "momentum": 0.9, "fix_gamma": True, **attrs}  # MXNet's defaults
            numbers = attrs["eps"], attrs["momentum"], int(attrs["fix_gamma"]), int(relu)
            return ("bn", x.number, *statistics, *numbers), x.channels
        if op == "Activation" and attrs["act_type"] == "relu":
            return ("relu", x.number), x.channels
        if op in ("elemwise_add", "elemwise_mul"):
            other = self._operand(given[1])
            return (op[len("elemwise_") :], x.number, other.number), x.channels
        if op == "sigmoid":
            return ("sigmoid", x.number), x.channels
        if op == "_mul_scalar":
            return ("affine", x.number, attrs["scalar"], 0), x.channels
        if op == "_rminus_scalar":
            return ("affine", x.number, -1, attrs["scalar"]), x.channels
        if op == "Dropout":
            return ("dropout", x.number, attrs["p"]), x.channels
        if op == "Pooling" and attrs["pool_type"] == "max" and not attrs.get("global_pool"):
            square = attrs["kernel"][0], attrs["stride"][0], attrs["pad"][0]
            return ("maxpool", x.number, *square), x.channels
        if op == "mean" and attrs["axis"] == (2, 3):
            return ("mean", x.number), x.channels
        raise _unsupported(node)

    def _widened(self, op, attrs, given, node) -> Widened:
        """What slices, zeros and concatenations come to; computed once something reads it."""
        before = self._computed[given[0]]
        source = before if isinstance(before, Widened) else Widened(before, 1, before.channels)
        if op == "slice" and attrs["step"][:2] == (1, 1) and not any(attrs["begin"]):
            return source._replace(stride=attrs["step"][2])
        if op == "slice_axis" and attrs["axis"] == 1 and attrs["begin"] == 0:
            return source._replace(channels=attrs["end"])
        others = [self._computed[index] for index in given[1:]]
        if op == "Concat" and attrs["dim"] == 1 and all(isinstance(o, Zeros) for o in others):
            channels = source.channels + sum(other.channels for other in others)
            return source._replace(channels=channels)
        raise _unsupported(node)

    def _adds_while_it_convolves(self, residual: int, shortcut: int) -> bool:
        """Has a convolution that nothing else reads add what is there already, if it is one."""
        number, more = self._operand(residual).number, self._operand(shortcut).number
        convolves = number > more and self._lines[number - 1][0] == "conv"
        if convolves and self._lines[number - 1][MORE] < 0 and len(self._readers[residual]) == 1:
            self._lines[number - 1][MORE] = more
            return True
        return False

    def _knows_statistics(self, attrs) -> bool:
        return not (self._training and attrs.get("use_global_stats"))

    def _convolves_alone(self, index: int) -> bool:
        """Whether, in inference, a node is a convolution that one other reads: it can be folded."""
        convolves = self._nodes[index]["op"] == "Convolution"
        return convolves and not self._training and len(self._readers[index]) == 1

    def _operand(self, index: int) -> Activation:
        """What a node has computed, as something that instructions can read."""
        found = self._computed[index]
        if isinstance(found, Widened):
            source, stride, channels = found
            number = len(self._lines) + 1
            self._lines.append(["widen", number, source.number, channels, stride])
            found = self._computed[index] = Activation(number, channels)
        return found

    def _input(self, index: int) -> int:
        """The number of the operator's input that a variable of the graph becomes."""
        self.inputs.append(self._nodes[index]["name"])
        return len(self.inputs) - 1


def _value(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _plain_convolution(attrs) -> bool:
    square = all(len(set(attrs[name])) == 1 for name in ("kernel", "stride", "pad"))
    return square and attrs["num_group"] == 1 and set(attrs["dilate"]) == {1}


def _unsupported(node) -> UserError:
    return UserError(
        f"the native engine has no {node['op']} like that of {node['name']}; use --engine mxnet"
    )
