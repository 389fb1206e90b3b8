"""oneDNN's verbose output as data. Nothing here imports a framework.

With DNNL_VERBOSE=1 oneDNN prints a line for each primitive that it executes, where MXNet's own,
2.4, begins with "dnnl_verbose" and newer ones with "onednn_verbose":

    dnnl_verbose,exec,cpu,KIND,KERNEL,PROPAGATION,TENSORS,ATTRIBUTES,DETAILS,SHAPES,MILLISECONDS
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

# Parts of kernels' names that mean a slow path: no vector code for these shapes and layouts. Plain
# copies ("simple:any" reorders) are not among them.
SLOW = ("ref", "ncsp_bnorm", "nspc_bnorm")

DIRECTIONS = {
    "forward_training": "forward",
    "forward_inference": "forward",
    "backward_data": "backward data",
    "backward_weights": "backward weights",
    "backward": "backward",
    "undef": "",
}
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "s8": 1, "u8": 1}


@dataclass(frozen=True)
class Primitive:
    """One execution.

    Attributes:
        kind: "convolution", "batch_normalization", "reorder", ...
        kernel: what computed it, as in "jit:avx512_common".
        direction: one of the values of `DIRECTIONS`.
        tensors: (role, type, layout) of what it reads and writes, as in ("src", "f32", "aBcd16b").
        shapes: as oneDNN writes them.
        milliseconds: that it took.
    """

    kind: str
    kernel: str
    direction: str
    tensors: tuple[tuple[str, str, str], ...]
    shapes: str
    milliseconds: float

    @property
    def what(self) -> str:
        """Kind and direction, as in "convolution backward data"."""
        return f"{self.kind} {self.direction}".strip()

    @property
    def slow(self) -> bool:
        """Whether a reference kernel computed it."""
        return any(re.match(rf"(simple_)?{word}|.*_{word}\b", self.kernel) for word in SLOW)

    @property
    def sizes(self) -> dict[str, int]:
        """A convolution's or normalisation's sizes: mb, ic, oc, ih, oh, kh, sh, ..."""
        return {name: int(size) for name, size in re.findall(r"([a-z]+)(\d+)", self.shapes)}

    @property
    def operations(self) -> float:
        """Floating-point operations of a convolution or inner product, two a multiply-add."""
        if self.kind not in ("convolution", "inner_product"):
            return 0.0
        size = {"oh": 1, "ow": 1, "kh": 1, "kw": 1, **self.sizes}
        return 2.0 * math.prod(size[name] for name in ("mb", "ic", "oc", "oh", "ow", "kh", "kw"))

    @property
    def bytes(self) -> float:
        """What one pass over the tensors moves, where all have one shape; else 0."""
        sizes = self.sizes
        if self.kind == "batch_normalization":
            elements = sizes["mb"] * sizes["ic"] * sizes["ih"] * sizes["iw"]
        elif re.fullmatch(r"[\dx]+", self.shapes):
            elements = math.prod(map(int, self.shapes.split("x")))
        else:
            return 0.0
        twice = 2 if self.kind == "batch_normalization" else 1  # read; written, or read again
        return float(elements * twice * sum(BYTES.get(of, 4) for _, of, _ in self.tensors))


def parse(text: str) -> list[Primitive]:
    """The primitives that lines of verbose output tell of, in their order; other lines are none."""
    return [found for line in text.splitlines() if (found := _primitive(line))]


def _primitive(line):
    fields = line.split(",")
    executed = fields[:2] in (["dnnl_verbose", "exec"], ["onednn_verbose", "exec"])
    if not executed or len(fields) != 11:
        return None
    _, _, _, kind, kernel, direction, tensors, _, _, shapes, milliseconds = fields
    return Primitive(
        kind,
        kernel,
        DIRECTIONS.get(direction, direction),
        tuple(filter(None, map(_tensor, tensors.split()))),
        shapes,
        float(milliseconds),
    )


def _tensor(text):
    """As in "src_f32::blocked:aBcd16b:f0"; None where it is not used."""
    found = re.match(r"(\w+?)_([a-z]+\d*):.*?:blocked:(\w+)", text)
    return found and found.groups()
