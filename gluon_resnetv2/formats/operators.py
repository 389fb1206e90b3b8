"""The operators that image classifiers are made of, as MXNet 1 writes them, with what each may say.

A kernel of MXNet takes attributes and shapes for granted: an edited number ends in a division by
zero, or reads outside an array. `OPERATORS` has the values that none fails on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container
from dataclasses import dataclass

from gluon_resnetv2.untrusted import Fault, quote

# -- Attributes: each parser takes text, and raises ValueError or KeyError -------------------------


def _choice(*words: str) -> Callable:
    return {word: word for word in words}.__getitem__


def _boolean(text):
    return {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}[text]


def _integer(low: int, high: int) -> Callable:
    def parse(text):
        if not re.fullmatch(r"-?\d{1,10}", text, re.ASCII) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return parse


def _number(text):
    form = r"-?\d{1,40}(\.\d{0,40})?(e[-+]?\d{1,2})?"
    if not re.fullmatch(form, text, re.ASCII) or abs(float(text)) > 1e30:
        raise ValueError
    return float(text)


def _positive(text):
    if _number(text) <= 0:
        raise ValueError
    return float(text)


def _optional(parser: Callable) -> Callable:
    return lambda text: None if text == "None" else parser(text)


def _tuple(item: Callable, lengths: Container[int]) -> Callable:
    """A tuple or list; or a number, which stands for a tuple of it."""

    def parse(text):
        match = re.fullmatch(r"\((.*)\)|\[(.*)\]|([^,]+)", text)
        if not match:
            raise ValueError
        inside = next(group for group in match.groups() if group is not None)
        words = [word.strip(" ") for word in inside.split(",")]
        if words[-1] == "":  # of () and (1,)
            words.pop()
        if len(words) not in lengths:
            raise ValueError
        return tuple(item(word) for word in words)

    return parse


dimensions = _tuple(_integer(-1, 1 << 31), range(9))  # of an array; 0 and -1: unknown

FALSE = _choice("False", "false", "0")
AXIS = _integer(-8, 7)
WINDOW = _tuple(_integer(1, 64), (0, 2))
COUNT = _integer(1, 1024)
POSITION = _integer(-(10**6), 10**6)
FLOATS = _choice("float16", "float32", "float64", "bfloat16")
RANGES = {"min_calib_range": _optional(_number), "max_calib_range": _optional(_number)}
SLIDING = {
    "kernel": WINDOW,
    "stride": WINDOW,
    "pad": _tuple(_integer(0, 4096), (0, 2)),
    "layout": _choice("None", "NCHW"),
    "cudnn_off": _boolean,
}
CONVOLUTION = {
    **SLIDING,
    "dilate": WINDOW,
    "num_filter": _integer(1, 1 << 16),
    "num_group": _integer(1, 1 << 16),
    "workspace": _integer(0, 1 << 16),
    "no_bias": _boolean,
    "cudnn_tune": _choice("None", "off", "fastest", "limited_workspace"),
}
DENSE = {"num_hidden": _integer(1, 1 << 20), "no_bias": _boolean, "flatten": _boolean}
POOLING = {
    **SLIDING,
    "pool_type": _choice("max", "avg", "sum"),
    "global_pool": _boolean,
    "pooling_convention": _choice("valid", "full"),
    "count_include_pad": _optional(_boolean),
}
BATCH_NORM = {
    "eps": _positive,
    "momentum": _number,
    "fix_gamma": _boolean,
    "use_global_stats": _boolean,
    "output_mean_var": FALSE,
    "axis": _choice("1"),
    "cudnn_off": _boolean,
    **RANGES,
}
ACTIVATION = {"act_type": _choice("relu", "sigmoid", "tanh", "softrelu", "softsign")}
LEAKY = {
    "act_type": _choice("elu", "gelu", "leaky", "selu"),
    **dict.fromkeys(("slope", "lower_bound", "upper_bound"), _number),
}
DROPOUT = {"p": _number, "axes": _choice("()"), "cudnn_off": _boolean}
SOFTMAX = {"axis": AXIS, "temperature": _optional(_positive)}
SOFTMAX_OUTPUT = {
    "grad_scale": _number,
    "smooth_alpha": _number,
    "ignore_label": _number,
    "use_ignore": _boolean,
    "normalization": _choice("null", "batch", "valid"),
    **dict.fromkeys(("multi_output", "preserve_shape", "out_grad"), FALSE),
}
RESHAPE = {
    "shape": _tuple(_integer(-4, 1 << 24), range(9)),
    "reverse": FALSE,
    "target_shape": _choice("(0,0)"),  # as MXNet 0.8 says that there is none
    "keep_highest": FALSE,
}
REDUCTION = {"axis": _tuple(AXIS, range(7)), "keepdims": _boolean, "exclude": FALSE}
SLICE = {
    "begin": _tuple(_optional(_integer(0, 10**6)), range(7)),  # -9 of 8 makes kernels fail
    "end": _tuple(_optional(POSITION), range(7)),
    "step": _tuple(_optional(_integer(1, 64)), range(7)),
}
QUANTIZE = {"out_type": _choice("auto", "int8", "uint8"), **RANGES}
SCALAR = {"scalar": _number}

# -- Rules: which attributes go together, and which shapes with them -------------------------------


def _window_rule(values) -> None:
    if any(pad >= size for size, pad in zip(values.get("kernel", ()), values.get("pad", ()))):
        raise Fault("pad is as large as the kernel")


def _convolution_rule(values) -> None:
    if not values.get("kernel"):
        raise Fault("kernel should have two numbers")
    windows = zip(values["kernel"], values.get("dilate") or (1, 1), values.get("pad") or (0, 0))
    if any(pad > size * step for size, step, pad in windows):
        raise Fault("pad is larger than the kernel")
    if values.get("num_filter", 1) % values.get("num_group", 1):
        raise Fault("num_group does not divide num_filter")


def _reshape_rule(values) -> None:
    sizes = values.get("shape", ())
    for at in (at for at, size in enumerate(sizes) if size == -4):
        low, high = sorted([*sizes[at + 1 : at + 3], 0, 0][:2])
        if high < 1 or (low < 1 and low != -1):
            raise Fault("shape should split an axis into two sizes, one of which may be -1")


def _transpose_rule(values) -> None:
    axes = values.get("axes", ())
    if axes[:1] != (0,) or sorted(axes) != list(range(len(axes))):
        raise Fault("it mixes images: axes should be all, and begin with 0, which is theirs")


def _slice_rule(values) -> None:
    begin, end = values.get("begin", ())[:1], values.get("end", ())[:1]
    if begin not in ((), (None,), (0,)) or end not in ((), (None,)):
        raise Fault("it mixes images: begin and end should leave them all")


def _calibrated(values) -> None:
    if None in [values.get(name) for name in RANGES]:
        raise Fault("it needs calibrated ranges: those of a batch mix its images")


def _reshape_sizes(_values, inputs, output) -> None:
    if math.prod(inputs[0]) != math.prod(output):
        raise Fault(f"it makes {output} of {inputs[0]}")


def _batch_norm_sizes(_values, inputs, output) -> None:
    if len(output) < 2 or inputs[1:5] != [output[1:2]] * 4:
        raise Fault(f"it normalises {output} by parameters {inputs[1:5]}")


def _pooling_sizes(_values, inputs, _output) -> None:
    if len(inputs[0]) != 4:
        raise Fault(f"it pools {inputs[0]}, which is no image's")


def _softmax_sizes(values, _inputs, output) -> None:
    axis = values.get("axis", -1)
    if not -len(output) <= axis < len(output):
        raise Fault(f"axis {axis} is none of {output}")
    if axis % len(output) == 0:
        raise Fault("it mixes images: axis is theirs")


def _softmax_output_sizes(_values, _inputs, output) -> None:
    if len(output) != 2:
        raise Fault(f"it takes a row of classes for each image, not {output}")


# -- Operators -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operator:
    """What an operator takes and gives.

    Attributes:
        inputs, outputs: how many; may depend on the attributes' values.
        attributes: a parser for each.
        rule: of the attributes' values; raises Fault where they don't go together.
        sizes: of values, inputs' shapes and the first output's; raises Fault where kernels would
            take more for granted than MXNet's shape inference checks.
        given: how many inputs after the first are variables.
        quantised: whether it may read integers, given the values; `integers`: whether it gives
            them, with the two ends of their range as second and third output.
        fused: whether it stands for a graph of its own, whose operators are in values["chain"].
    """

    inputs: int | Callable
    attributes: dict[str, Callable]
    outputs: int | Callable = 1
    rule: Callable | None = None
    sizes: Callable | None = None
    given: int = 0
    quantised: bool | Callable = False
    integers: bool | Callable = False
    fused: bool = False

    def value(self, name: str, text: str):
        """An attribute's value."""
        if name not in self.attributes:
            raise Fault(f"attribute {quote(name)} is unknown")
        try:
            return self.attributes[name](text)
        except (ValueError, KeyError):
            raise Fault(f"{name} = {quote(text)} is out of range") from None


def _with_bias(values) -> int:
    return 2 if values.get("no_bias") else 3


def _arguments(values) -> int:
    return values.get("num_args", 0)


def _quantised(inputs, attributes, **more) -> Operator:
    return Operator(inputs, attributes, 3, quantised=True, integers=True, **more)


POINTWISE = ("Activation", "LeakyReLU", "clip")


def _fused(first: str, flags: dict[str, tuple], ranges: Callable, **attributes) -> Operator:
    """What MXNet's MKLDNN backend makes of an operator and those after it.

    Args:
        flags: for each attribute, by which MXNet counts inputs, what follows where it is true.
        ranges: of values and a count of inputs without; how many more give integers' ranges.
    """

    def rule(values):
        said = [(first,), *(ops for flag, ops in flags.items() if values.get(flag))]
        found = [node.op for node in values["chain"]]
        if len(found) != len(said) or any(op not in ops for op, ops in zip(found, said)):
            raise Fault(f"it stands for {' '.join(found)}, which its attributes do not say")
        if integers(values):
            _calibrated(values)

    def inputs(values):
        count = 1 + sum(len(node.inputs) - 1 for node in values["chain"])
        return count + (ranges(values, count) if quantised(values) else 0)

    def quantised(values):
        return values.get("quantized", False)

    def integers(values):
        return quantised(values) and not values.get("enable_float_output")

    return Operator(
        inputs,
        {**dict.fromkeys(("quantized", *flags), _boolean), **RANGES, **attributes},
        lambda values: 3 if integers(values) else 1,
        rule,
        quantised=quantised,
        integers=integers,
        fused=True,
    )


OPERATORS = {
    "Convolution": Operator(_with_bias, CONVOLUTION, rule=_convolution_rule),
    "FullyConnected": Operator(_with_bias, DENSE),
    "Pooling": Operator(1, POOLING, rule=_window_rule, sizes=_pooling_sizes),
    "_contrib_AdaptiveAvgPooling2D": Operator(
        1, {"output_size": _tuple(_integer(1, 256), range(3))}, sizes=_pooling_sizes
    ),
    "BatchNorm": Operator(5, BATCH_NORM, sizes=_batch_norm_sizes, given=4),
    "Activation": Operator(1, ACTIVATION),
    "LeakyReLU": Operator(1, LEAKY),
    "clip": Operator(1, {"a_min": _number, "a_max": _number}),
    "Dropout": Operator(1, DROPOUT),
    "softmax": Operator(1, SOFTMAX, sizes=_softmax_sizes),
    "SoftmaxOutput": Operator(2, SOFTMAX_OUTPUT, sizes=_softmax_output_sizes),
    "Reshape": Operator(1, RESHAPE, rule=_reshape_rule, sizes=_reshape_sizes),
    "SwapAxis": Operator(1, {"dim1": _integer(0, 7), "dim2": _integer(0, 7)}),
    "transpose": Operator(1, {"axes": _tuple(_integer(0, 7), range(9))}, rule=_transpose_rule),
    "expand_dims": Operator(1, {"axis": AXIS}),
    "Concat": Operator(_arguments, {"num_args": COUNT, "dim": AXIS}),
    "slice": Operator(1, SLICE, rule=_slice_rule),
    "slice_axis": Operator(1, {"axis": AXIS, "begin": POSITION, "end": _optional(POSITION)}),
    "mean": Operator(1, REDUCTION),
    "sum": Operator(1, REDUCTION),
    "Cast": Operator(1, {"dtype": FLOATS}),
    "amp_cast": Operator(1, {"dtype": FLOATS}),
    **dict.fromkeys(
        ("Flatten", "relu", "sigmoid", "_copy", "BlockGrad", "zeros_like"), Operator(1, {})
    ),
    **dict.fromkeys(("elemwise_add", "elemwise_mul"), Operator(2, {})),
    "add_n": Operator(_arguments, {"num_args": COUNT}),
    **{f"broadcast_{name}": Operator(2, {}) for name in ("add", "sub", "mul", "div")},
    **{
        f"_{name}_scalar": Operator(1, SCALAR) for name in ("plus", "minus", "rminus", "mul", "div")
    },
    "_sg_mkldnn_conv": _fused(
        "Convolution",
        {
            "with_bn": ("BatchNorm",),
            "with_act": POINTWISE,
            "with_sum": ("elemwise_add",),
            "with_postsum_act": POINTWISE,
        },
        lambda values, _: 4 if values.get("with_sum") else 2,
    ),
    "_sg_mkldnn_fully_connected": _fused(
        "FullyConnected",
        {"with_eltwise": POINTWISE},
        lambda values, count: 2 if values.get("channel_wise_quantize") else 2 * count,
        enable_float_output=_boolean,
        channel_wise_quantize=_optional(_boolean),
    ),
    "_contrib_quantize_v2": Operator(1, QUANTIZE, 3, _calibrated, integers=True),
    "_contrib_dequantize": Operator(3, {"out_type": _choice("float32")}, quantised=True),
    "_contrib_quantized_pooling": _quantised(3, POOLING, rule=_window_rule, sizes=_pooling_sizes),
    "_contrib_quantized_flatten": _quantised(3, {}),
    "_contrib_quantized_act": _quantised(3, ACTIVATION),
    "_contrib_quantized_concat": _quantised(
        lambda values: 3 * _arguments(values), {"num_args": COUNT, "dim": _integer(1, 3)}
    ),
    "_contrib_quantized_elemwise_add": _quantised(6, RANGES),
    "_contrib_quantized_batch_norm": _quantised(
        7, BATCH_NORM, rule=_calibrated, sizes=_batch_norm_sizes, given=4
    ),
}
FUSIBLE = {"Convolution", "FullyConnected", "BatchNorm", "elemwise_add", *POINTWISE}
