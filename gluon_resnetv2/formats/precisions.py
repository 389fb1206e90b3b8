"""What an export may compute in; `forms.IN` has the graph of each. Imports no framework."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """How a precision is judged.

    Attributes:
        agreement: the least part of the calibration images whose likeliest class has to be that of
            float32; None: the logits themselves are compared.
        fused: whether its graph is fused by MXNet's oneDNN backend in any case.
    """

    agreement: float | None = None
    fused: bool = False


PRECISIONS = {
    "float32": Precision(),
    "bfloat16": Precision(agreement=0.995),
    "int8": Precision(agreement=0.99, fused=True),
}
