"""What a field of a recipe is: how it is declared, read from an option, and written as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

# Under which headings `train --help` shows the fields, those of a group as `Recipe` orders them.
GROUPS = ("network", "data", "optimisation", "machine", "run")


def numbers(kind):
    def parse(text: str) -> tuple:
        return tuple(kind(number) for number in text.split(",") if number.strip())

    parse.__name__ = f"comma-separated {kind.__name__}"  # argparse names it in its message
    return parse


def segments(text: str) -> str | int:
    return text if text in ("auto", "off") else int(text)


segments.__name__ = "auto, off or a number"


def part(text: str) -> str | int:
    return text if text in ("stem", "features") else int(text)


part.__name__ = "stem, features or a number of stages"


def option(
    group, default, help, *, type=None, choices=None, flag=False, machine=False, later=False
):
    details = {"group": group, "help": help, "type": type, "choices": choices, "flag": flag}
    details |= {"machine": machine, "later": later}
    return dataclasses.field(default=default, metadata=details)


def flag(name: str) -> str:
    """The option of a field: "--batch-size" of "batch_size"."""
    return f"--{name.replace('_', '-')}"


def words(fields: Iterable[tuple[str, object]]) -> str:
    """The options that set fields, such as "--batch-size 128", without those that are None."""
    return " ".join(_words(name, value) for name, value in fields if value is not None)


def _words(name, value):
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    values = value if isinstance(value, tuple) else (value,)
    texts = (f"{one:.12g}" if isinstance(one, float) else str(one) for one in values)
    return f"{flag(name)} {','.join(texts)}"


# What a field's annotation lets a value in JSON be.
_JSON = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "tuple": (list, tuple),
    "str | int": (str, int),
}


def kind_of(field: dataclasses.Field) -> str:
    """What a field holds where it is not None, as its annotation has it."""
    return str(field.type).removesuffix(" | None")


def fits(field: dataclasses.Field, value) -> bool:
    if value is None:
        return field.default is None
    if isinstance(value, bool) != (kind_of(field) == "bool"):
        return False
    if not isinstance(value, _JSON[kind_of(field)]):
        return False
    if isinstance(value, (list, tuple)):
        kinds = (int,) if field.name in ("gpus", "lr_steps") else (int, float)
        return all(type(number) in kinds for number in value)
    return True
