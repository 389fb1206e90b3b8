"""What an export may compute in; `forms.IN` has the graph of each. Imports no framework."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """What a precision is, and how it is judged.

    Attributes:
        about: its bits and form, for help texts.
        agreement: the least part of the calibration images whose likeliest class has to be that of
            float32; None: the logits themselves are compared.
        fused: whether its graph is fused by MXNet's oneDNN backend in any case.
    """

    about: str
    agreement: float | None = None
    fused: bool = False


PRECISIONS = {
    "float32": Precision("32 bits"),
    "bfloat16": Precision("16 bits", agreement=0.995),
    "int8": Precision("8 bits, fused", agreement=0.99, fused=True),
}
PRECISIONS_HELP = "; ".join(
    f"{name}: {one.about}" + (f" ({100 * one.agreement:g} %)" if one.agreement else "")
    for name, one in PRECISIONS.items()
)
