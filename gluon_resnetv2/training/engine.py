"""What a training computes with: the native engine where it can, else MXNet's graph.

The choice follows from the network, the recipe, versions and the processor, never from a clock, so
that the same command computes the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from gluon_resnetv2.distributed.workers import Workers
from gluon_resnetv2.engines import choice
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.training import checks
from gluon_resnetv2.training.recipe import Recipe


def choose(
    recipe: Recipe,
    net: ResNetV2,
    shape: Sequence[int],
    workers: Workers,
    begun: str | None = None,
) -> tuple[str, list[str]]:
    """The engine, "mxnet" or "native", and what is to be told of it.

    All workers have to call it together, and are given the same.

    Args:
        net: initialised, with the precision that it trains in.
        shape: of an image, (C, H, W).
        begun: what the checkpoint was trained with that the run goes on from, if there is one.
    """
    engine, why = recipe.engine, ""
    if engine == "auto" and begun == "mxnet":
        engine, why = begun, " (as before)"
    elif engine == "auto":
        fault = checks.native_fault(recipe)
        if not fault:
            fault = choice.native_fault(net, tuple(shape), recipe.dtype, training=True)
            if workers.any(bool(fault)):
                fault = fault or "another worker lacks it"
        engine, why = ("mxnet", f" (not native: {fault})") if fault else ("native", "")
    line = f"engine {engine}{why}"
    if begun not in (None, engine):
        line += f"; it was {begun} before, so the bits will differ from here on"
    hint = choice.precision_hint(engine, recipe.dtype)
    return engine, [line, *([f"{hint}: --dtype {_other(recipe.dtype)}"] if hint else [])]


def _other(dtype):
    return "bfloat16" if dtype == "float32" else "float32"
