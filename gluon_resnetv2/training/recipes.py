"""Recipes with a name: what differs from `Recipe`'s defaults, what it costs and what to expect."""

from __future__ import annotations

from dataclasses import dataclass

from gluon_resnetv2.errors import python


@dataclass(frozen=True)
class Named:
    """A recipe somebody has published results for.

    Attributes:
        fields: what differs from the defaults of `Recipe`.
        source: where these are from.
        cost: as its source states it.
        expected: test error in percent, of the source's network, with the source where another.
        unlike: what the source does and we don't, as far as is known.
    """

    fields: dict
    source: str
    cost: str
    expected: str
    unlike: str = ""

    def about(self, name: str) -> str:
        """Its command, source, cost, the error to expect and what it lacks, as text."""
        own = self.fields.get("dataset") in ("folder", "imagenet")
        data = " --data-dir DIR" if own else ""
        told = {
            "from": self.source,
            "cost": self.cost,
            "expected": f"{self.expected}: test error in %",
            "not ours": self.unlike,
        }
        lines = [f"    {word:10}{text}" for word, text in told.items() if text]
        return "\n".join(
            [f"{python('-m', 'gluon_resnetv2', 'train')} --recipe {name}{data}", *lines]
        )


_PAPER = "[v2], appendix"
_RELEASED = "KaimingHe/resnet-1k-layers with facebookarchive/fb.resnet.torch"
_FOOTNOTE = "[v2], Table 5's footnote: facebookarchive/fb.resnet.torch"
_TORNADOMEET = "tornadomeet/ResNet, train_resnet.py"
_GLUONCV = "GluonCV's training logs"

_UNLIKE_PAPER = "subtracts each pixel's mean"
_UNLIKE_TORCH = "starts the classifier as Torch does"
_UNLIKE_GLUONCV_CIFAR = (
    "starts from MXNet's Xavier; projections and the first unit's shortcut read what is not yet "
    "activated; pads with black; leaves out the end of an epoch that fills no batch"
)

_PAPER_IMAGENET = {
    "dataset": "imagenet",
    "model": "preact200",
    "batch_size": 256,
    "num_epochs": 90,
    "lr_step_epochs": (30.0, 60.0),
    "warmup_steps": 0,
}
_GLUONCV_CIFAR = {
    "model": "preact110",
    "widening": "B",
    "input_bn": "plain",
    "optimizer": "nag",
    "num_epochs": 200,
    "lr_step_epochs": (100.0, 150.0),
    "warmup_steps": 0,
}
_GLUONCV_IMAGENET = {
    "dataset": "imagenet",
    "model": "preact50",
    "stride_on": "3x3",
    "input_bn": "plain",
    "augmentation": "scale-aspect",
    "optimizer": "nag",
    "batch_size": 1024,
    "num_epochs": 120,
    "lr": 0.4,
    "lr_schedule": "cosine",
    "warmup": "linear",
    "warmup_lr": 0.0,
    "warmup_epochs": 5.0,
}

RECIPES = {
    "digits": Named(
        {
            "dataset": "digits",
            "model": "preact20",
            "batch_size": 64,
            "num_epochs": 15,
            "lr_step_epochs": (9.0, 13.0),
            "warmup_steps": 20,
        },
        source="this project: make train",
        cost="a minute on 2 CPU cores",
        expected="1.1 to 1.4 (seeds 0 to 2)",
    ),
    "folder": Named(
        {
            "dataset": "folder",
            "model": "preact20",
            "batch_size": 64,
            "num_epochs": 60,
            "lr": 0.05,
            "lr_schedule": "cosine",
            "warmup": "linear",
            "warmup_lr": 0.0,
            "warmup_epochs": 3.0,
        },
        source="this project: what --dataset folder takes by default",
        cost="depends on the images",
        expected="depends on the images",
    ),
    "fashion-mnist": Named(
        {
            "dataset": "fashion-mnist",
            "model": "preact20",
            "optimizer": "nag",
            "num_epochs": 45,
            "lr_schedule": "cosine",
            "warmup": "linear",
            "warmup_lr": 0.0,
            "warmup_epochs": 1.0,
            "wd": 5e-4,
        },
        source="this project: what --dataset fashion-mnist, mnist, kmnist and idx take by default",
        cost="about 36 minutes on 2 CPU cores with --dtype bfloat16",
        expected="5.30 (median of seeds 0 to 2; 5.16 to 5.46)",
    ),
    "paper-cifar10": Named(
        {"model": "preact164"},
        source=_PAPER,
        cost="2 GPUs of 2016; ResNet-1001 about 27 hours",
        expected="5.46 (median of 5 runs); preact110 6.37, preact1001 4.92",
        unlike=_UNLIKE_PAPER,
    ),
    "paper-cifar100": Named(
        {"model": "preact164", "dataset": "cifar100"},
        source=_PAPER,
        cost="2 GPUs of 2016; ResNet-1001 about 27 hours",
        expected="24.33 (median of 5 runs); preact1001 22.71",
        unlike=_UNLIKE_PAPER,
    ),
    "released-cifar10": Named(
        {
            "model": "preact1001",
            "init": "out",
            "optimizer": "nag",
            "batch_size": 64,
            "num_epochs": 200,
            "lr_step_epochs": (80.0, 121.0),
            "warmup_steps": 0,
            "momentum_correction": True,
        },
        source=_RELEASED,
        cost="2 GPUs of 2016",
        expected="4.62 (median; mean 4.69, standard deviation 0.20)",
        unlike=_UNLIKE_TORCH,
    ),
    "tornadomeet-cifar10": Named(
        {
            "model": "preact164",
            "stride_on": "3x3",
            "input_bn": "shift",
            "optimizer": "nag",
            "num_epochs": 300,
            "lr_step_epochs": (220.0, 260.0, 280.0),
            "warmup_steps": 0,
        },
        source="tornadomeet/ResNet, log/resnet-164.log; its script has 200 epochs, without a log",
        cost="2 GPUs",
        expected="4.68 (the best epoch of one run; its last 4.71)",
        unlike="BN's eps is 2e-5; pads with grey; counts 112 test images twice",
    ),
    "gluoncv-cifar10": Named(
        _GLUONCV_CIFAR,
        source=_GLUONCV,
        cost="3.3 hours on one GPU (60 s an epoch)",
        expected="5.7 (one run); preact20 7.9, preact56 6.3",
        unlike=_UNLIKE_GLUONCV_CIFAR,
    ),
    "gluoncv-cifar10-mixup": Named(
        {**_GLUONCV_CIFAR, "num_epochs": 220, "mixup": 1.0, "mixup_off_epochs": 20},
        source=_GLUONCV,
        cost="3.7 hours on one GPU (61 s an epoch)",
        expected="4.5 (one run); preact20 7.3, preact56 5.4",
        unlike=_UNLIKE_GLUONCV_CIFAR,
    ),
    "paper-imagenet": Named(
        _PAPER_IMAGENET,
        source=_PAPER,
        cost="about 3 weeks on 8 GPUs of 2016",
        expected="top-1 20.7, top-5 5.3 at --test-size 320; preact152 21.1 and 5.5",
        unlike=_UNLIKE_PAPER,
    ),
    "paper-imagenet-aspect": Named(
        {
            **_PAPER_IMAGENET,
            "stride_on": "3x3",
            "init": "out",
            "augmentation": "scale-aspect",
            "optimizer": "nag",
            "momentum_correction": True,
        },
        source=_FOOTNOTE,
        cost="not stated",
        expected="top-1 20.1, top-5 4.8 at --test-size 320",
        unlike="jitters brightness, contrast and saturation by 0.4; scales crops bicubically; "
        + _UNLIKE_TORCH,
    ),
    "tornadomeet-imagenet": Named(
        {
            **_PAPER_IMAGENET,
            "model": "preact50",
            "stride_on": "3x3",
            "input_bn": "shift",
            "colour": False,
            "optimizer": "nag",
            "num_epochs": 120,
            "lr_step_epochs": (30.0, 60.0, 90.0),
        },
        source=_TORNADOMEET,
        cost="not stated; 6 GPUs",
        expected="top-1 24.39, top-5 7.24; preact18 30.48 and 10.92, preact200 22.14 and 6.16",
        unlike="BN's eps is 2e-5; jitters hue, saturation and light by 36, 50, 50 and aspect by "
        "0.25; from about epoch 95 on it only cuts and flips",
    ),
    "gluoncv-imagenet": Named(
        _GLUONCV_IMAGENET,
        source=_GLUONCV,
        cost="not stated; 8 GPUs",
        expected="top-1 22.89, top-5 6.57; preact18 29.00 and 10.08, preact101 21.47 and 5.83",
        unlike="jitters brightness, contrast and saturation by 0.4; starts from MXNet's MSRAPrelu",
    ),
}

# Of data sets for which the paper's recipe for CIFAR is none, the recipe without --recipe.
DEFAULTS = {
    **dict.fromkeys(("mnist", "fashion-mnist", "kmnist", "idx"), "fashion-mnist"),
    "folder": "folder",
    "imagenet": "paper-imagenet",
}
