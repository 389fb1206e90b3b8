"""Parts of a network that learn nothing."""

from __future__ import annotations

from gluon_resnetv2.layers import batch_norms, chain
from gluon_resnetv2.net import ResNetV2


def freeze(net: ResNetV2, what: str | int) -> None:
    """Has the first part of a network stay as it is, whatever is trained behind it.

    Its parameters get no gradient, and its batch normalisations use their moving statistics in
    training too, and leave them alone.

    Args:
        what: "stem", all before the first unit; a number, so many stages too; or "features", all
            but the classifier.
    """
    blocks = list(net.features)
    first = blocks.index(net.units[0])
    if what == "features":
        count = len(blocks)
    elif what == "stem":
        count = first
    else:
        count = first + sum(net.spec.stages[: int(what)])
    part = chain(blocks[:count])
    part.collect_params().setattr("grad_req", "null")
    for norm in batch_norms(part):
        norm.freeze()
