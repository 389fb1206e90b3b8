"""What the native operator is to compute, as a program for it: see `trunk.cc` for the language."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import starmap
from typing import Any, NamedTuple

import mxnet as mx

from gluon_resnetv2.engines.features import SOFTMAX
from gluon_resnetv2.engines.native.unfused import unfused
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.machine import cpu_flags

Words = dict[str, float | bool]  # of an instruction; True: the word alone
VNNI = {"avx512_vnni", "avx_vnni"}  # instructions; without them, products of bytes may overflow
Attribute = tuple[Any, Callable[[Any], bool]]  # what it is by default, and whether it may be


def _anything(_value) -> bool:
    return True


def _one_of(*values):
    return values.__contains__


def _number(value) -> bool:
    return isinstance(value, (int, float))


def _square(value) -> bool:
    """The same whole number for height and width."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], int)
        and value[0] == value[1]
    )


def _from_the_start(value) -> bool:
    return isinstance(value, tuple) and not any(value)


def _to_the_end(value) -> bool:
    return isinstance(value, tuple) and set(value) <= {None}


def _strides(value) -> bool:
    """Of pixels alone, as `_square`."""
    whole = isinstance(value, tuple) and value[:2] == (1, 1)
    return whole and _square(value[2:]) and value[2] > 0


# Of each operator, what its attributes are where the graph does not say, and may be. What stands
# under no name here, or has another value, is refused.
BOOLEAN, NO, IGNORED = _one_of(True, False), (False, _one_of(False)), (None, _anything)
LAYOUT = (None, _one_of(None, "NCHW"))
WINDOW = {
    "kernel": (None, _square),
    "stride": ((1, 1), _square),
    "pad": ((0, 0), _square),
    "layout": LAYOUT,
    "cudnn_off": IGNORED,
}
SCALAR = {"scalar": (1, _number), "is_int": IGNORED}
ATTRIBUTES: dict[str, dict[str, Attribute]] = {
    "Convolution": {
        **WINDOW,
        "dilate": ((1, 1), _one_of((1, 1))),
        "num_filter": (None, _number),
        "num_group": (1, _one_of(1)),
        "no_bias": (False, BOOLEAN),
        "workspace": IGNORED,
        "cudnn_tune": IGNORED,
    },
    "BatchNorm": {
        "axis": (1, _one_of(1)),
        "eps": (1e-3, _number),
        "momentum": (0.9, _number),
        "fix_gamma": (True, BOOLEAN),
        "use_global_stats": (False, BOOLEAN),
        "output_mean_var": NO,
        "cudnn_off": IGNORED,
    },
    "Activation": {"act_type": (None, _one_of("relu"))},
    "Pooling": {
        **WINDOW,
        "pool_type": ("max", _one_of("max")),
        "global_pool": NO,
        "pooling_convention": ("valid", _one_of("valid")),
        "count_include_pad": IGNORED,
    },
    "Dropout": {
        "p": (0.5, _number),
        "mode": ("training", _one_of("training")),
        "axes": ((), _one_of(())),
        "cudnn_off": IGNORED,
    },
    "FullyConnected": {
        "num_hidden": (None, _number),
        "no_bias": (False, BOOLEAN),
        "flatten": IGNORED,  # images have one vector of means each
    },
    "softmax": {
        "axis": (-1, _one_of(-1, 1)),
        "temperature": (None, _one_of(None, 1.0)),
        "use_length": NO,
        "dtype": (None, _one_of(None)),
    },
    "mean": {"axis": (None, _one_of((2, 3))), "keepdims": NO, "exclude": NO},
    "slice": {
        "begin": ((), _from_the_start),
        "end": ((), _to_the_end),
        "step": (None, _strides),
    },
    "slice_axis": {
        "axis": (None, _one_of(1)),
        "begin": (None, _one_of(0)),
        "end": (None, lambda end: isinstance(end, int) and end > 0),
    },
    "Concat": {"dim": (1, _one_of(1)), "num_args": IGNORED},
    "amp_cast": {"dtype": IGNORED},
    "_mul_scalar": SCALAR,
    "_rminus_scalar": {**SCALAR, "scalar": (1, _one_of(1))},
    **{op: {} for op in ("elemwise_add", "elemwise_mul", "sigmoid", "zeros_like")},
}
# In training, what differs from that.
IN_TRAINING = {"BatchNorm": {"use_global_stats": NO}}


class Activation(NamedTuple):
    """What an instruction computes: its number, and how many channels it has."""

    number: int
    channels: int


class Widened(NamedTuple):
    """Every `stride`-th pixel of an activation, and zeros as further channels up to `channels`."""

    source: Activation
    stride: int
    channels: int


class Gate(NamedTuple):
    """The sigmoid of an activation, or of its negative, which is 1 less that; only multiplied by.

    Below 1, steps of bfloat16 are 0.004, and a gate may start at 0.0025: it is never rounded.
    """

    source: Activation
    sign: int


class Gated(NamedTuple):
    """An activation times a gate; computed once something reads it, with the sum it goes into."""

    source: Activation
    gate: Gate


class Zeros(NamedTuple):
    """Channels of zeros."""

    channels: int


Value = Activation | Widened | Gate | Gated | Zeros


class Program:
    """The program of a network, from its images to its features; in inference, to its logits.

    Args:
        symbol: the network, traced, or as MXNet has fused it or computes it in 8 bits; its head is
            the mean over the pixels and a classifier.
        in_channels: of the images.
        training: whether batches are normalised by their own statistics, and activations dropped.

    Attributes:
        text: the instructions.
        inputs: names of the operator's inputs, the images first.
        features: how many the last instruction computes of an image, in inference classes.
        folded: names of the normalisations that convolutions take in.
        softmax: in inference, whether the network makes probabilities of that, or leaves it.

    Raises:
        UserError: the operator has no instruction for something in the network, or the processor
            has none for 8 bits.
    """

    def __init__(self, symbol: mx.sym.Symbol, in_channels: int, training: bool = True):
        self._training = training
        self._nodes, self._ranges = unfused(json.loads(symbol.tojson())["nodes"])
        self._readers: list[list[int]] = [[] for _ in self._nodes]
        for index, node in enumerate(self._nodes):
            for source, *_ in node["inputs"]:
                self._readers[source].append(index)
        self._lines: list[tuple[str, Words]] = []
        self._computed: dict[int, Value] = {}  # by the node's index
        self._in_bytes: dict[int, Activation] = {}  # the same in 8 bits
        self.inputs: list[str] = []
        self.folded: list[str] = []
        self.features = 0
        self.softmax = False
        for index, node in enumerate(self._nodes):
            if node["op"] == "null" or self.features:
                continue
            if not self.inputs:
                first = node["inputs"][0][0]
                self._input(first)
                self._computed[first] = Activation(0, in_channels)
            self._add(index, node)
        if not self.features:
            raise UserError(
                "the native engine finds no mean over the pixels in this graph; use --engine mxnet"
            )
        if not training:
            self._classify()
        self.text = ";".join(starmap(_line, self._lines))

    def head(self, features: mx.sym.Symbol) -> mx.sym.Symbol:
        """What the network makes of what the program computes, by MXNet's own operators."""
        made = {self._last: features}
        for index, node in enumerate(self._nodes[self._last + 1 :], self._last + 1):
            if node["op"] == "null":
                made[index] = mx.sym.var(node["name"])
            elif node["op"] == "amp_cast":  # the features are float32
                made[index] = made[node["inputs"][0][0]]
            else:
                given = [made[source] for source, *_ in node["inputs"]]
                operator = getattr(mx.sym, node["op"], None) or getattr(
                    mx.sym._internal, node["op"]
                )
                made[index] = operator(*given, name=node["name"], **node.get("attrs", {}))
        return made[len(self._nodes) - 1]

    def _add(self, index: int, node: dict) -> None:
        """Computes what one node of the graph does."""
        op, attrs = node["op"], self._attributes(node)
        given = [source for source, *_ in node["inputs"]]
        if self._passes_on(node):
            self._computed[index] = self._found(given[0])  # in the operator's own type
        elif op == "zeros_like":
            like = self._found(given[0])
            if isinstance(like, (Gate, Gated)):
                raise _unsupported(node)
            self._computed[index] = Zeros(like.channels)
        elif op == "sigmoid":
            self._computed[index] = Gate(self._operand(given[0]), 1)
        elif op == "_rminus_scalar":
            self._computed[index] = self._less_than_1(given[0], node)
        elif op == "elemwise_mul":
            self._computed[index] = self._gated(given, node)
        elif op in ("slice", "Concat", "slice_axis"):
            self._computed[index] = self._widened(op, attrs, given, node)
        elif op == "elemwise_add" and (first := self._first_gated(reversed(given))):
            (other,) = (one for one in given if one != first[0])
            self._computed[index] = self._gate(first[1], add=self._operand(other).number)
        elif op == "elemwise_add" and self._adds_while_it_convolves(*given):
            self._computed[index] = self._computed[given[0]]
        elif index not in self._computed:  # a ReLU may be part of the instruction before it
            name, words, channels = self._instruction(op, attrs, given, index)
            if op in ("BatchNorm", "Activation") and self._convolves_alone(given[0]):
                activation = self._operand(given[0])
                _, convolution = self._lines[activation.number - 1]
                if op == "BatchNorm":
                    self.folded.append(node["name"])
                    kept = ("gamma", "beta", "mean", "var", "eps", "fixed", "relu")
                    convolution.update((word, words[word]) for word in kept)
                else:
                    convolution["relu"] = True
            else:
                activation = self._instruct(name, words, channels)
            self._computed[index] = activation
            if op == "BatchNorm" and words["relu"]:
                (relu,) = self._readers[index]
                self._computed[relu] = activation
            if op == "mean":
                self.features, self._last = channels, index

    def _classify(self) -> None:
        """Appends the classifier, if that is what reads the features; sees what comes behind it."""
        for index in self._readers[self._last]:
            node = self._nodes[index]
            if node["op"] == "FullyConnected":
                units = self._attributes(node)["num_hidden"]
                weights = [self._input(source) for source, *_ in node["inputs"][1:]]
                words: Words = dict(zip(("weight", "bias"), weights))
                words = {"in": self._operand(self._last).number, **words, "units": units}
                self._computed[index] = self._instruct("dense", words, units)
                self.features, self._last = units, index
        nothing = ("null", "Flatten")  # the latter of vectors
        behind = [node for node in self._nodes[self._last + 1 :] if node["op"] not in nothing]
        for node in behind:
            if len(behind) > 1 or node["op"] not in SOFTMAX:
                raise _unsupported(node)
            if node["op"] == "softmax":
                self._attributes(node)
        self.softmax = bool(behind)

    def _attributes(self, node) -> dict:
        """The values of a node's attributes, all of which are understood."""
        op = node["op"]
        if op not in ATTRIBUTES:
            raise _unsupported(node)
        known = {**ATTRIBUTES[op], **(IN_TRAINING.get(op, {}) if self._training else {})}
        said = {k: _value(v) for k, v in node.get("attrs", {}).items() if not k.startswith("__")}
        values = {**{name: default for name, (default, _) in known.items()}, **said}
        for name, value in values.items():
            if name not in known or not known[name][1](value):
                raise _unsupported(node, f", with {name} = {value}")
        return values

    def _passes_on(self, node) -> bool:
        """Whether a node computes what it reads."""
        return node["op"] == "amp_cast" or (node["op"] == "Dropout" and not self._training)

    def _instruction(self, op, attrs, given, index):
        """Its name, its words but `out`, and how many channels it computes."""
        x = self._operand(given[0])
        words: Words = {"in": x.number}
        if op == "Convolution" and (step := self._step(given[0])):
            words.update({"in": self._bytes(given[0], step).number, "step": step})
        if op in ("Convolution", "Pooling"):
            square = {word: attrs[word][0] for word in ("kernel", "stride", "pad")}
        if op == "Convolution":
            inputs = dict(zip(("weight", "bias"), map(self._input, given[1:])))
            channels = attrs["num_filter"]
            return "conv", {**words, **inputs, "channels": channels, **square}, channels
        if op == "BatchNorm":
            readers = [self._nodes[reader] for reader in self._readers[index]]
            relu = [one.get("attrs", {}).get("act_type") for one in readers] == ["relu"]
            words.update(zip(("gamma", "beta", "mean", "var"), map(self._input, given[1:])))
            words.update(eps=attrs["eps"], momentum=attrs["momentum"])
            return "bn", {**words, "fixed": bool(attrs["fix_gamma"]), "relu": relu}, x.channels
        if op == "Activation":
            return "relu", words, x.channels
        if op == "elemwise_add":
            return "add", {**words, "with": self._operand(given[1]).number}, x.channels
        if op == "_mul_scalar":
            return "scale", {**words, "factor": attrs["scalar"]}, x.channels
        if op == "Dropout":
            return "dropout", {**words, "ratio": attrs["p"]}, x.channels
        if op == "Pooling":
            return "maxpool", {**words, **square}, x.channels
        if op != "mean":
            raise _unsupported(self._nodes[index])
        return "mean", words, x.channels

    def _step(self, index: int) -> float | None:
        """What 255 of are the largest value of a node that 8 bits hold, and that is never negative.

        A graph in 8 bits has such nodes before all of its convolutions but the first.
        """
        least, largest = self._ranges.get(index, (-1, 0))
        return largest / 255 if least >= 0 < largest else None

    def _bytes(self, index: int, step: float) -> Activation:
        """What a node has computed, in `step`s from 0 to 255."""
        if not self._in_bytes and not VNNI & set(cpu_flags()):
            raise UserError(
                "the native engine computes in 8 bits by VNNI, instructions that this processor "
                "does not have; use --engine mxnet"
            )
        if index not in self._in_bytes:
            activation = self._operand(index)
            name, words = self._lines[activation.number - 1] if activation.number else ("", {})
            readers = {self._nodes[reader]["op"] for reader in self._readers[index]}
            if readers == {"Convolution"} and name == "conv" and "step" in words:
                words["to"] = step
            elif readers == {"Convolution"} and name == "bn":
                self._lines[activation.number - 1] = "bytes", {**words, "to": step}
            else:
                words = {"in": activation.number, "to": step}
                activation = self._instruct("bytes", words, activation.channels)
            self._in_bytes[index] = activation
        return self._in_bytes[index]

    def _less_than_1(self, index: int, node) -> Gate:
        """What a gate leaves of 1."""
        gate = self._found(index)
        if not isinstance(gate, Gate):
            raise _unsupported(node)
        return gate._replace(sign=-gate.sign)

    def _gated(self, given, node) -> Gated:
        """The product of an activation and a gate, in either order."""
        x, gate = sorted(given, key=lambda one: isinstance(self._found(one), Gate))
        factor = self._found(gate)
        if not isinstance(factor, Gate):
            raise _unsupported(node)
        return Gated(self._operand(x), factor)

    def _first_gated(self, given: Iterable[int]) -> tuple[int, Gated] | None:
        """The first of these nodes that is a product with a gate, and that one other reads."""
        for one in given:
            found = self._found(one)
            if isinstance(found, Gated) and self._has_one_reader(one):
                return one, found
        return None

    def _gate(self, gated: Gated, **more: int) -> Activation:
        """Computes a product with a gate, and adds an activation to it."""
        x, gate = gated
        words: Words = {"in": x.number, "gate": gate.source.number, "sign": gate.sign, **more}
        return self._instruct("gate", words, x.channels)

    def _instruct(self, name: str, words: Words, channels: int) -> Activation:
        """Appends an instruction that computes so many channels."""
        activation = Activation(len(self._lines) + 1, channels)
        self._lines.append((name, {"out": activation.number, **words}))
        return activation

    def _widened(self, op, attrs, given, node) -> Widened:
        """What slices, zeros and concatenations come to; computed once something reads it."""
        before, *others = map(self._found, given)
        if isinstance(before, (Gate, Gated, Zeros)):
            raise _unsupported(node)
        source = before if isinstance(before, Widened) else Widened(before, 1, before.channels)
        if op == "slice":
            return source._replace(stride=source.stride * attrs["step"][2])
        if op == "slice_axis" and attrs["end"] <= source.channels:
            return source._replace(channels=attrs["end"])
        cut = source.channels < source.source.channels  # what is cut off would come back
        zeros = [other.channels for other in others if isinstance(other, Zeros)]
        if op == "Concat" and not cut and len(zeros) == len(others):
            return source._replace(channels=source.channels + sum(zeros))
        raise _unsupported(node)

    def _adds_while_it_convolves(self, residual: int, shortcut: int) -> bool:
        """Has a convolution that nothing else reads add what is there already, if it is one."""
        number, more = self._operand(residual).number, self._operand(shortcut).number
        if number <= more or not self._has_one_reader(residual):
            return False
        name, words = self._lines[number - 1]
        adds = name == "conv" and "add" not in words
        if adds:
            words["add"] = more
        return adds

    def _has_one_reader(self, index: int) -> bool:
        """Whether one node alone reads what this one computes, here or before nodes between."""
        node = self._nodes[index]
        before = not self._passes_on(node) or self._has_one_reader(node["inputs"][0][0])
        return before and len(self._readers[index]) == 1

    def _convolves_alone(self, index: int) -> bool:
        """Whether, in inference, a node is a convolution that one other reads: it can be folded."""
        convolves = self._nodes[index]["op"] == "Convolution"
        return convolves and not self._training and len(self._readers[index]) == 1

    def _operand(self, index: int) -> Activation:
        """What a node has computed, as something that instructions can read."""
        found = self._found(index)
        if isinstance(found, (Gate, Zeros)):
            raise _unsupported(self._nodes[index])
        if isinstance(found, Widened):
            source, stride, channels = found
            words: Words = {"in": source.number, "channels": channels, "stride": stride}
            found = self._instruct("widen", words, channels)
        if isinstance(found, Gated):
            found = self._gate(found)
        self._computed[index] = found
        return found

    def _found(self, index: int) -> Value:
        """What a node has computed; no parameter, which instructions read as such alone."""
        if index not in self._computed:
            raise _unsupported(self._nodes[index])
        return self._computed[index]

    def _input(self, index: int) -> int:
        """The number of the operator's input that a variable of the graph becomes."""
        if self._nodes[index]["op"] != "null":
            raise _unsupported(self._nodes[index])
        self.inputs.append(self._nodes[index]["name"])
        return len(self.inputs) - 1


def _line(name: str, words: Words) -> str:
    """An instruction as the operator reads it: numbers as WORD=NUMBER, what is True as its word."""
    said = ((word, value) for word, value in words.items() if value is not False)
    return " ".join([name, *(word if value is True else f"{word}={value}" for word, value in said)])


# What MXNet writes as Python does, in JSON. `ast.literal_eval` fails now and then where several
# threads parse, on Python 3.11.
JSON = {"(": "[", ", )": "]", ",)": "]", ")": "]", "True": "true", "False": "false", "None": "null"}


def _value(text: str):
    written = text
    for python, json_s in JSON.items():
        written = written.replace(python, json_s)
    try:
        found = json.loads(written)
    except ValueError:
        return text
    return tuple(found) if isinstance(found, list) else found


def _unsupported(node, why: str = "") -> UserError:
    what = "variable" if node["op"] == "null" else node["op"]
    return UserError(
        f"the native engine has no {what} like that of {node['name']}{why}; use --engine mxnet"
    )
