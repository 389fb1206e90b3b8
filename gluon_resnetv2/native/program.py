"""What the native operator is to compute, as a program for it: see `trunk.cc` for the language."""

from __future__ import annotations

import ast
import json
from typing import NamedTuple

import mxnet as mx

from gluon_resnetv2.errors import UserError


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

    Attributes:
        text: the instructions.
        inputs: names of the operator's inputs, the images first.
        features: how many the last instruction computes of an image.

    Raises:
        UserError: the operator has no instruction for something in the network.
    """

    def __init__(self, symbol: mx.sym.Symbol, in_channels: int):
        self._nodes = json.loads(symbol.tojson())["nodes"]
        self._readers: list[list[int]] = [[] for _ in self._nodes]
        for index, node in enumerate(self._nodes):
            for source, *_ in node["inputs"]:
                self._readers[source].append(index)
        self._lines: list[str] = []
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
        self.text = ";".join(self._lines)

    def _add(self, index: int, node: dict) -> None:
        """Computes what one node of the graph does."""
        op, attrs = node["op"], {k: _value(v) for k, v in node.get("attrs", {}).items()}
        given = [source for source, *_ in node["inputs"]]
        if op == "amp_cast":  # the operator's own type takes the place of the graph's
            self._computed[index] = self._computed[given[0]]
        elif op == "zeros_like":
            self._computed[index] = Zeros(self._computed[given[0]].channels)
        elif op in ("slice", "Concat", "slice_axis"):
            self._computed[index] = self._widened(op, attrs, given, node)
        elif op == "elemwise_add" and self._adds_while_it_convolves(*given):
            self._computed[index] = self._computed[given[0]]
        elif index not in self._computed:  # a ReLU may be part of the instruction before it
            words, channels = self._instruction(op, attrs, given, index, node)
            name, *words = words
            self._lines.append(" ".join(map(str, (name, len(self._lines) + 1, *words))))
            activation = Activation(len(self._lines), channels)
            self._computed[index] = activation
            if op == "BatchNorm" and words[-1]:
                (relu,) = self._readers[index]
                self._computed[relu] = activation
            self.features = channels if op == "mean" else 0

    def _instruction(self, op, attrs, given, index, node):
        """Its name and all its numbers but `out`, and how many channels it computes."""
        x = self._operand(given[0])
        if op == "Convolution" and _plain_convolution(attrs):
            weight, *bias = map(self._input, given[1:])
            channels = attrs["num_filter"]
            square = attrs["kernel"][0], attrs["stride"][0], attrs["pad"][0]
            return ("conv", x.number, weight, *(bias or [-1]), channels, *square, -1), channels
        if op == "BatchNorm" and attrs["axis"] == 1 and not attrs.get("use_global_stats"):
            readers = [self._nodes[reader] for reader in self._readers[index]]
            relu = [one.get("attrs", {}).get("act_type") for one in readers] == ["relu"]
            statistics = map(self._input, given[1:])
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
        convolves = self._lines[number - 1].startswith("conv") and number > more
        if convolves and len(self._readers[residual]) == 1:
            self._lines[number - 1] = self._lines[number - 1].removesuffix("-1") + str(more)
            return True
        return False

    def _operand(self, index: int) -> Activation:
        """What a node has computed, as something that instructions can read."""
        found = self._computed[index]
        if isinstance(found, Widened):
            source, stride, channels = found
            number = len(self._lines) + 1
            self._lines.append(f"widen {number} {source.number} {channels} {stride}")
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
