"""What the paper reports: test errors in percent, with the network that each belongs to.

[v1] and [v2] as in `spec`. CIFAR errors are medians of five runs where the paper gives them;
`FAIL` is the paper's "fail", an error above 20 %.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gluon_resnetv2.spec import Spec, named

FAIL = float("inf")


@dataclass(frozen=True)
class Result:
    """One reported error."""

    source: str  # where it stands
    model: str
    data: str
    error: float | None
    switches: dict = field(default_factory=dict)  # of `spec.named`, as text
    note: str = ""

    @property
    def spec(self) -> Spec:
        classes = {"CIFAR-10": 10, "CIFAR-100": 100, "ImageNet": 1000}[self.data]
        return named(self.model, classes=classes, **self.switches)

    @property
    def image_size(self) -> int:
        """Height and width of the images that multiply-adds are counted for."""
        return 224 if self.data == "ImageNet" else 32

    def __str__(self):
        if self.error is None:
            return "-"
        return "fail" if self.error == FAIL else f"{self.error:.2f}"


def _table1(shortcut, error):
    return Result("[v2] Table 1", "resnet110", "CIFAR-10", error, {"shortcut": shortcut})


def _table2(order, *errors):
    return [
        Result("[v2] Table 2", f"resnet{depth}", "CIFAR-10", error, {"order": order})
        for depth, error in zip((110, 164), errors)
    ]


SINGLE = {"unit": "single"}

RESULTS = [
    *(Result("-", f"preact{depth}", "CIFAR-10", None) for depth in (20, 32, 44, 56, 1202)),
    *(Result("-", f"plain{depth}", "CIFAR-10", None) for depth in (20, 32, 44, 56)),
    *(Result("-", f"preact{depth}", "ImageNet", None) for depth in (18, 34, 50, 101, 269)),
    *(
        Result("[v1] Table 6", f"resnet{depth}", "CIFAR-10", error)
        for depth, error in ((20, 8.75), (32, 7.51), (44, 7.17), (56, 6.97), (1202, 7.93))
    ),
    _table1("identity", 6.61),
    _table1("plain", FAIL),
    _table1("scale:0.5,1", FAIL),
    _table1("scale:0.5,0.5", 12.35),
    *(_table1(f"exclusive-gate:{-bias}", FAIL) for bias in (0, 5)),
    _table1("exclusive-gate:-6", 8.70),
    _table1("exclusive-gate:-7", 9.81),
    _table1("gate:0", 12.86),
    _table1("gate:-6", 6.91),
    _table1("conv1x1", 12.22),
    _table1("dropout:0.5", FAIL),
    *_table2("original", 6.61, 5.93),
    *_table2("bn_after_add", 8.17, 6.50),
    *_table2("relu_before_add", 7.84, 6.14),
    *_table2("relu_preact", 6.71, 5.91),
    Result("[v2] Table 2", "preact110", "CIFAR-10", 6.37),
    Result("[v2] Table 2", "preact164", "CIFAR-10", 5.46),
    Result("[v2] Table 3", "resnet110", "CIFAR-10", 9.90, SINGLE),
    Result("[v2] Table 3", "preact110", "CIFAR-10", 8.91, SINGLE),
    Result("[v2] Table 3", "resnet1001", "CIFAR-10", 7.61),
    Result("[v2] Table 3", "preact1001", "CIFAR-10", 4.92),
    Result("[v2] Table 3", "resnet164", "CIFAR-100", 25.16),
    Result("[v2] Table 3", "preact164", "CIFAR-100", 24.33),
    Result("[v2] Table 3", "resnet1001", "CIFAR-100", 27.82),
    Result("[v2] Table 3", "preact1001", "CIFAR-100", 22.71),
    Result("[v2] Table 4", "preact1001", "CIFAR-10", 4.62, note="mini-batch 64"),
    Result("[v2] Table 5", "resnet152", "ImageNet", 23.0, note="crop 224"),
    Result("[v2] Table 5", "resnet152", "ImageNet", 21.3, note="crop 320"),
    Result("[v2] Table 5", "preact152", "ImageNet", 21.1, note="crop 320"),
    Result("[v2] Table 5", "resnet200", "ImageNet", 21.8, note="crop 320"),
    Result("[v2] Table 5", "preact200", "ImageNet", 20.7, note="crop 320"),
    Result("[v2] Table 5", "preact200", "ImageNet", 20.1, note="crop 320, + aspect ratio"),
]


def table() -> str:
    """Every network above with its size, cost and reported error, as aligned text.

    Errors are top-1 in percent; multiply-adds are for one image of 32x32, on ImageNet 224x224.
    """
    described = [_describe(result) for result in RESULTS]
    rows = [list(described[0]), *(list(row.values()) for row in described)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if title in NUMBERS else cell.ljust(width)
            for title, cell, width in zip(described[0], row, widths)
        ).rstrip()
        for row in rows
    )


NUMBERS = ("depth", "parameters", "mult-adds", "error %")  # aligned to the right


def _describe(result: Result) -> dict[str, str]:
    spec = result.spec
    return {
        "name": result.model,
        "order": spec.order,
        "shortcut": str(spec.shortcut) if spec.has_shortcut else "plain",
        "unit": spec.unit,
        "depth": str(spec.depth),
        "parameters": f"{spec.parameter_count() / 1e6:.2f} M",
        "mult-adds": f"{spec.multiply_adds(result.image_size) / 1e9:.3f} G",
        "data": result.data,
        "error %": str(result),
        "source": ", ".join(filter(None, (result.source, result.note))),
    }
