"""Recipes with a name: what differs from `Recipe`'s defaults, what it costs and what to expect."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Named:
    """A recipe somebody has published results for.

    Attributes:
        script: what runs it, below train/.
        fields: what differs from the defaults of `Recipe`.
        cost: as its source states it.
        expected: test error in percent, with its source; None where nobody has published one.
        source: where the fields come from.
    """

    script: str
    fields: dict
    cost: str
    expected: str
    source: str


PAPER = "He et al., arXiv:1603.05027"
RELEASED = "KaimingHe/resnet-1k-layers on facebookarchive/fb.resnet.torch"
TORNADOMEET = "tornadomeet/ResNet, train_resnet.py"
GLUONCV = "GluonCV's model zoo, its training logs"

# Twice what is written: tornadomeet's and GluonCV's nets differ a little from the paper's in their
# stems (see the README); what is meant here is how they are trained.
RECIPES = {
    # make train
    "digits": Named(
        "cifar.py",
        {
            "dataset": "digits",
            "model": "preact20",
            "batch_size": 64,
            "num_epochs": 15,
            "lr_step_epochs": (9.0, 13.0),
            "warmup_steps": 20,
        },
        "a minute on two CPU cores",
        "about 1",
        "measured here: 1.1 on the 360 held-out digits",
    ),
}
