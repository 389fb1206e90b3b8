"""What the paper reports: test errors in percent, with the network that each belongs to.

[v1] and [v2] as in `spec`. CIFAR errors are medians of five runs where [v2] gives them, 6.43 of
[v1] the best of five; `FAIL` is the paper's "fail", an error above 20 %.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gluon_resnetv2.cli import aligned
from gluon_resnetv2.spec import IMAGE_SIZES, Spec, named

FAIL = float("inf")


@dataclass(frozen=True)
class Result:
    """One reported error.

    Attributes:
        source: where it stands.
        error, error5: top-1 and top-5, in percent; None where the paper has none.
        switches: of `spec.named`, as text.
        note: what else sets the row apart.
        case: what the paper calls it.
        training: named recipe (`training.recipes`) that it was trained by.
        test_size: ImageNet: the crop, in pixels, that it was tested on.
        spread: mean and standard deviation, where the paper gives them beside `error`.
    """

    source: str
    model: str
    data: str
    error: float | None
    switches: dict = field(default_factory=dict)
    note: str = ""
    case: str = ""
    training: str = ""
    error5: float | None = None
    test_size: int | None = None
    spread: str = ""

    @property
    def spec(self) -> Spec:
        return named(self.model, classes=CLASSES[self.data], **self.switches)

    @property
    def image_size(self) -> int:
        """Height and width of the images that multiply-adds are counted for."""
        return IMAGE_SIZES[self.spec.stem]

    @property
    def recipe(self) -> str:
        """The name of the recipe that it was trained by."""
        return self.training or f"paper-{self.data.lower().replace('-', '')}"

    @property
    def key(self) -> str:
        """A short name, unique within its table: "resnet110/gate:-6"."""
        tail = [self.data] if self.data == "CIFAR-100" else []
        tail += [self.note.replace(", ", "/").replace(" ", "-")] if self.note else []
        return "/".join([self.model, *self.switches.values(), *tail])

    @property
    def reported(self) -> str:
        """The error as text, with its spread where there is one."""
        return f"{self} ({self.spread})" if self.spread else str(self)

    def __str__(self):
        if self.error is None:
            return "-"
        return "fail" if self.error == FAIL else f"{self.error:.2f}"


def _table1(case, shortcut, error):
    switches = {"shortcut": shortcut}
    return Result("[v2] Table 1", "resnet110", "CIFAR-10", error, switches, case=case)


def _table2(case, order, *errors):
    if order == "full_preact":  # has names of its own
        names, switches = ("preact110", "preact164"), {}
    else:
        names, switches = ("resnet110", "resnet164"), {"order": order}
    return [
        Result("[v2] Table 2", name, "CIFAR-10", error, switches, case=case)
        for name, error in zip(names, errors)
    ]


def _table3(depth, data, original, preact, **switches):
    return [
        Result("[v2] Table 3", f"{family}{depth}", data, error, switches, case=case)
        for family, error, case in (("resnet", original, "original"), ("preact", preact, "pre-act"))
    ]


def _table4(model, data, error, of, **about):
    return Result("[v2] Table 4", model, data, error, case=f"ResNet [{of}]", **about)


def _table5(model, crop, error, error5, note="", **about):
    return Result(
        "[v2] Table 5", model, "ImageNet", error, note=", ".join(filter(None, (crop, note))),
        error5=error5, test_size=int(crop.split()[1]), **about,
    )  # fmt: skip


CLASSES = {"CIFAR-10": 10, "CIFAR-100": 100, "ImageNet": 1000}

RESULTS = [
    *(Result("-", f"preact{depth}", "CIFAR-10", None) for depth in (20, 32, 44, 56, 1202)),
    *(Result("-", f"preact{depth}", "ImageNet", None) for depth in (18, 34, 50, 101, 269)),
    # [v1] shows their curves (Fig. 6), without figures.
    *(
        Result("[v1] Fig. 6", f"plain{depth}", "CIFAR-10", None, case="plain")
        for depth in (20, 32, 44, 56)
    ),
    *(
        Result("[v1] Table 6", f"resnet{depth}", "CIFAR-10", error, case="ResNet")
        for depth, error in ((20, 8.75), (32, 7.51), (44, 7.17), (56, 6.97))
    ),
    Result(
        "[v1] Table 6",
        "resnet110",
        "CIFAR-10",
        6.43,
        case="ResNet",
        spread="best of 5, mean 6.61 ± 0.16",
    ),
    Result("[v1] Table 6", "resnet1202", "CIFAR-10", 7.93, case="ResNet"),
    _table1("original (2a)", "identity", 6.61),
    _table1("constant scaling 0, 1 (2b)", "plain", FAIL),
    _table1("constant scaling 0.5, 1 (2b)", "scale:0.5,1", FAIL),
    _table1("constant scaling 0.5, 0.5 (2b)", "scale:0.5,0.5", 12.35),
    # One row of the paper, "b_g = 0 to -5": both its ends.
    _table1("exclusive gating, 0 to -5 (2c)", "exclusive-gate:0", FAIL),
    _table1("exclusive gating, 0 to -5 (2c)", "exclusive-gate:-5", FAIL),
    _table1("exclusive gating, -6 (2c)", "exclusive-gate:-6", 8.70),
    _table1("exclusive gating, -7 (2c)", "exclusive-gate:-7", 9.81),
    _table1("shortcut-only gating, 0 (2d)", "gate:0", 12.86),
    _table1("shortcut-only gating, -6 (2d)", "gate:-6", 6.91),
    _table1("1x1 conv shortcut (2e)", "conv1x1", 12.22),
    _table1("dropout shortcut, 0.5 (2f)", "dropout:0.5", FAIL),
    *_table2("original residual unit (4a)", "original", 6.61, 5.93),
    *_table2("BN after addition (4b)", "bn_after_add", 8.17, 6.50),
    *_table2("ReLU before addition (4c)", "relu_before_add", 7.84, 6.14),
    *_table2("ReLU-only pre-activation (4d)", "relu_preact", 6.71, 5.91),
    *_table2("full pre-activation (4e)", "full_preact", 6.37, 5.46),
    *_table3(110, "CIFAR-10", 9.90, 8.91, unit="single"),
    *_table3(110, "CIFAR-10", 6.61, 6.37),
    *_table3(164, "CIFAR-10", 5.93, 5.46),
    *_table3(1001, "CIFAR-10", 7.61, 4.92),
    *_table3(164, "CIFAR-100", 25.16, 24.33),
    *_table3(1001, "CIFAR-100", 27.82, 22.71),
    _table4("resnet110", "CIFAR-10", 6.61, "v1"),
    _table4("resnet1202", "CIFAR-10", 7.93, "v1"),
    _table4("preact164", "CIFAR-10", 5.46, "v2"),
    _table4("preact1001", "CIFAR-10", 4.92, "v2", spread="4.89 ± 0.14"),
    _table4(
        "preact1001",
        "CIFAR-10",
        4.62,
        "v2",
        note="mini-batch 64",
        training="released-cifar10",
        spread="4.69 ± 0.20",
    ),
    _table4("resnet164", "CIFAR-100", 25.16, "v1"),
    _table4("resnet1001", "CIFAR-100", 27.82, "v1"),
    _table4("preact164", "CIFAR-100", 24.33, "v2"),
    _table4("preact1001", "CIFAR-100", 22.71, "v2", spread="22.68 ± 0.22"),
    _table5("resnet152", "crop 224", 23.0, 6.7, case="original"),
    _table5("resnet152", "crop 320", 21.3, 5.5, case="original"),
    _table5("preact152", "crop 320", 21.1, 5.5, case="pre-act"),
    _table5("resnet200", "crop 320", 21.8, 6.0, case="original"),
    _table5("preact200", "crop 320", 20.7, 5.3, case="pre-act"),
    _table5(
        "preact200",
        "crop 320",
        20.1,
        4.8,
        "+ aspect ratio",
        case="pre-act",
        training="paper-imagenet-aspect",
    ),
]


def table() -> str:
    """Every network above with its size, cost and reported error, as aligned text.

    Errors are top-1 in percent; multiply-adds are for one image of 32x32, on ImageNet 224x224.
    """
    described = [_describe(result) for result in RESULTS]
    titles = list(described[0])
    right = [number for number, title in enumerate(titles) if title in NUMBERS]
    return aligned([titles, *(list(row.values()) for row in described)], right)


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
        "source": ", ".join(filter(None, (result.source, result.note, result.spread))),
    }
