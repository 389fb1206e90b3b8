"""Everything that defines a run, as one value: what `recipe.json` holds and the options set."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

from gluon_resnetv2.data import NAMES, Dataset, load
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.spec import (
    FAMILIES,
    IMAGE_SIZE_MAX,
    ORDER,
    SHORTCUT_HELP,
    STEM,
    UNIT,
    Spec,
    named,
)
from gluon_resnetv2.training.schedule import StepSchedule


def _numbers(kind):
    def parse(text: str) -> tuple:
        return tuple(kind(number) for number in text.split(",") if number.strip())

    parse.__name__ = f"comma-separated {kind.__name__}"  # argparse names it in its message
    return parse


def _option(default, help, *, type=None, choices=None, flag=False):
    details = {"help": help, "type": type, "choices": choices, "flag": flag}
    return dataclasses.field(default=default, metadata=details)


FLOAT32_MAX = 3.4e38  # MXNet's optimisers take no larger number


@dataclass(frozen=True)
class Recipe:
    """A run's definition. Defaults are the paper's CIFAR recipe (appendix).

    Raises:
        UserError: a value is out of range, or two exclude each other.
    """

    # The network
    model: str = _option("preact110", f"{', '.join(f'{f}N' for f in FAMILIES)}, N the depth")
    order: str = _option(None, "operations in a unit; default: the model's", choices=tuple(ORDER))
    shortcut: str = _option(None, f"{SHORTCUT_HELP}; default: the model's")
    unit: str = _option(None, "unit of a CIFAR network; default: by depth", choices=tuple(UNIT))
    stem: str = _option(None, "network for such images; default: by depth", choices=tuple(STEM))
    widening: str = _option(
        None, "A: zero padding, B: projection, C: projection everywhere", choices=("A", "B", "C")
    )
    stride_on: str = _option(None, "a bottleneck's stride", choices=("first", "3x3"))
    input_bn: str = _option(
        None, "batch normalisation of the input", choices=("off", "shift", "plain")
    )
    init: str = _option("in", "He initialisation by fan in or fan out", choices=("in", "out"))
    # The data
    dataset: str = _option("cifar10", "images to train on", choices=NAMES)
    data_dir: str = _option(None, "folder of the data set; default: the user's cache")
    image_size: int = _option(None, "height and width in pixels; default: the data set's")
    coarse: bool = _option(False, "CIFAR-100's 20 coarse classes instead of 100", flag=True)
    # Optimisation
    batch_size: int = _option(128, "images per step, over all devices")
    num_epochs: int = _option(
        None, "passes over the training images; default: 164, or 1 for synthetic images"
    )
    lr: float = _option(0.1, "learning rate")
    lr_step_epochs: tuple = _option(
        (82.0, 123.0), "epochs at which the learning rate is reduced", type=_numbers(float)
    )
    lr_factor: float = _option(0.1, "what it is multiplied by there")
    warmup_lr: float = _option(None, "learning rate of the warm-up; default: a tenth of --lr")
    warmup_steps: int = _option(400, "steps of the warm-up")
    mom: float = _option(0.9, "momentum")
    wd: float = _option(1e-4, "weight decay, on every parameter")
    dtype: str = _option("float32", "precision", choices=("float32", "float64"))
    seed: int = _option(0, "of the weights, the order of the images and their augmentation")
    # Where
    gpus: tuple = _option(None, "GPUs to train on, as in 0,1,2,3", type=_numbers(int))
    cpus: int = _option(1, "without --gpus: how many devices to simulate on the CPU")
    kv_store: str = _option(
        "device", "how devices exchange gradients", choices=("local", "device", "nccl")
    )
    output: str = _option(None, "the run's folder; default: a new one in runs/")

    def __post_init__(self):
        if self.num_epochs is None:
            object.__setattr__(self, "num_epochs", 1 if self.dataset == "synthetic" else 164)
        if self.warmup_lr is None:
            object.__setattr__(self, "warmup_lr", self.lr / 10)
        for name in ("batch_size", "num_epochs", "cpus"):
            if getattr(self, name) < 1:
                raise UserError(f"--{_flag(name)} must be at least 1, not {getattr(self, name)}")
        for name in ("lr", "lr_factor", "warmup_lr", "warmup_steps", "mom", "wd", "seed"):
            if not 0 <= getattr(self, name) <= FLOAT32_MAX:
                raise UserError(
                    f"--{_flag(name)} must be a finite number, at least 0: {getattr(self, name)}"
                )
        if self.image_size is not None and not 1 <= self.image_size <= IMAGE_SIZE_MAX:
            raise UserError(f"--image-size must be 1 to {IMAGE_SIZE_MAX}, not {self.image_size}")
        if self.seed >= 2**31:
            raise UserError(f"--seed must be below 2^31: {self.seed}")
        boundaries = self.lr_step_epochs
        if not all(0 < epoch < float("inf") for epoch in boundaries) or list(boundaries) != sorted(
            boundaries
        ):
            raise UserError("--lr-step-epochs needs rising positive numbers, as in 82,123")
        if self.gpus is not None and (
            not self.gpus or len(set(self.gpus)) < len(self.gpus) or min(self.gpus) < 0
        ):
            raise UserError("--gpus needs numbers that differ, as in 0,1,2,3")
        if self.gpus and self.cpus > 1:
            raise UserError("--gpus and --cpus exclude each other")
        if self.kv_store == "nccl" and not self.gpus:
            raise UserError("--kv-store nccl needs --gpus; CPUs use 'device' or 'local'")
        if self.batch_size < self.devices:
            raise UserError(
                f"--batch-size {self.batch_size} is smaller than the number of devices, "
                f"{self.devices}; every device needs an image"
            )

    @property
    def devices(self) -> int:
        return len(self.gpus) if self.gpus else self.cpus

    def load_data(self) -> Dataset:
        """The images to train on: of the synthetic ones two batches, one for testing.

        Raises:
            UserError: they can't be had.
        """
        counts = {}
        if self.dataset == "synthetic":
            counts = {"train_count": 2 * self.batch_size, "test_count": self.batch_size}
        return load(
            self.dataset, self.data_dir, image_size=self.image_size, coarse=self.coarse, **counts
        )

    def spec(self, classes: int) -> Spec:
        """The network for so many classes.

        Raises:
            UserError: no such network.
        """
        switches = ("order", "shortcut", "unit", "stem", "widening", "stride_on", "input_bn")
        return named(
            self.model, classes=classes, **{name: getattr(self, name) for name in switches}
        )

    def schedule(self, steps_per_epoch: int) -> StepSchedule:
        """The learning rate by step."""
        return StepSchedule(
            self.lr,
            tuple(round(epoch * steps_per_epoch) for epoch in self.lr_step_epochs),
            self.lr_factor,
            self.warmup_lr,
            self.warmup_steps,
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option for every field of `Recipe`."""
    for field in dataclasses.fields(Recipe):
        details = dict(field.metadata)
        if details.pop("flag"):
            parser.add_argument(f"--{_flag(field.name)}", action="store_true", help=details["help"])
            continue
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(f"{number:g}" for number in default)
        details["type"] = details["type"] or {"int": int, "float": float}.get(field.type, str)
        parser.add_argument(f"--{_flag(field.name)}", default=default, **details)


def _flag(name: str) -> str:
    return name.replace("_", "-")
