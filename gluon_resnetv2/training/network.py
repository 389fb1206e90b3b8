"""How a recipe says which network it trains: a name, options, and switches that have no option."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.spec import Spec, named

# Fields of a recipe that `spec.named` takes by the same names.
OPTIONS = ("order", "shortcut", "unit", "stem", "widening", "stride_on", "input_bn")
FIELDS = ("model", *OPTIONS, "switches")
# What `switches` may say, and what it is by default.
SWITCHES = {
    field.name: field.default
    for field in dataclasses.fields(Spec)
    if field.name not in (*OPTIONS, "name", "stages", "channels", "classes", "in_channels")
}


def parse_switches(text: str | None) -> dict[str, Any]:
    """Fields of `Spec` from "first_activation=unit,bn_eps=2e-5"; numbers are from 0 to below 1.

    Raises:
        UserError: one of them has another form, or is none of `SWITCHES`.
    """
    switches: dict[str, Any] = {}
    for word in filter(None, (text or "").split(",")):
        name, _, value = word.strip().partition("=")
        default = SWITCHES.get(name)
        try:
            if isinstance(default, bool):
                switches[name] = {"True": True, "False": False}[value]
            elif isinstance(default, float):
                switches[name] = float(value)
                if not 0 <= switches[name] < 1:
                    raise ValueError
            elif default is not None and value:
                switches[name] = value
            else:
                raise ValueError
        except (KeyError, ValueError):
            raise UserError(
                f"--switches can't have {word!r}; it takes NAME=VALUE of {', '.join(SWITCHES)}"
            ) from None
    return switches


def fields_of(spec: Spec) -> dict[str, Any]:
    """The fields of a recipe that mean a network, whatever its classes and its images' channels.

    Raises:
        UserError: its stages or channels are those of no network that has a name.
    """
    family = {"full_preact": "preact"}.get(spec.order, "resnet")
    for name in (spec.name, f"{family}{spec.depth}"):
        for given in ((), ("stem",), ("unit",), ("stem", "unit")):
            fields = {option: getattr(spec, option) for option in given}
            with contextlib.suppress(UserError):
                base = named(name, **fields)
                if all(
                    getattr(base, field) == getattr(spec, field)
                    for field in ("stem", "unit", "stages", "channels")
                ):
                    return {"model": name, **fields, **_apart(spec, base)}
    raise UserError(
        f"{spec.name} has stages of {spec.stages} units with {spec.channels} channels, which no "
        "--model says"
    )


def _apart(spec: Spec, base: Spec) -> dict[str, Any]:
    """The options and switches in which a network differs from the one of its name."""
    apart = [name for name in (*OPTIONS, *SWITCHES) if getattr(spec, name) != getattr(base, name)]
    fields = {name: getattr(spec, name) for name in apart if name in OPTIONS}
    if "shortcut" in fields:
        fields["shortcut"] = str(spec.shortcut)
    if switches := [f"{name}={getattr(spec, name)}" for name in apart if name in SWITCHES]:
        fields["switches"] = ",".join(switches)
    return fields
