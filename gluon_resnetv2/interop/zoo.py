"""Networks by name, with weights that were given."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mxnet as mx

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.interop.beginning import begin
from gluon_resnetv2.interop.source import read
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import named


def get_model(
    name: str,
    pretrained: str | Path | bool = False,
    ctx: mx.Context | Sequence[mx.Context] | None = None,
    report: Callable[[str], None] | None = None,
    **switches: Any,
) -> ResNetV2:
    """The network called `name`: not yet initialised, or with weights that were given.

    >>> get_model("preact110", classes=100, shortcut="gate:-6")
    >>> get_model("preact50", pretrained="timm:resnetv2_50.a1h_in1k", classes=37)

    Args:
        name: as in `spec.named`: "preact110", "resnet50", "plain20".
        pretrained: weights, as `source.read` takes them: a run, an export, a file of another
            implementation. All switches are then theirs. With other `classes` the classifier is
            new, with other `in_channels` the first layer follows.
        ctx: the device or devices that take them; the CPU by default.
        report: is told, in a line each, what was taken and what became of it; by default stderr is.
        switches: fields of `Spec`; `shortcut` may be text, as in `spec.parse_shortcut`.

    Raises:
        UserError: the name or a switch means no network, or not that of the weights; or there are
            no such weights.
    """
    spec = named(name, **switches)
    if pretrained is False or pretrained is None:
        return ResNetV2(spec)
    if pretrained is True:
        raise UserError(
            f"no weights of {name} are published: train it, and name the folder of the run or of "
            "an export, as in pretrained='runs/imagenet'"
        )
    report = report or partial(print, file=sys.stderr)
    source = read(pretrained, report=report, classes=1)
    given = {key for key, value in switches.items() if value is not None}
    for field in ("name", *sorted(given - {"classes", "in_channels"})):
        held, wanted = getattr(source.spec, field), getattr(spec, field)
        if held != wanted:
            raise UserError(
                f"{pretrained} holds a network whose {field} is {held}, not {wanted}: ask for what "
                "it holds"
            )
    asked = {key: getattr(spec, key) for key in ("classes", "in_channels") if key in given}
    if source.headless and "classes" not in given:
        asked["classes"] = spec.classes
    net = ResNetV2(dataclasses.replace(source.spec, **asked))
    net.initialize(ctx=ctx or mx.cpu())
    begin(net, source, report=report if asked else lambda line: None)
    return net
