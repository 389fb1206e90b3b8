"""Everything that defines a run, as one value: what `recipe.json` holds and the options set."""

from __future__ import annotations

import codecs
import dataclasses
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gluon_resnetv2.data import NAMES, Policy
from gluon_resnetv2.data.folders import default_augmentation
from gluon_resnetv2.distributed import PARAMETER_SERVER
from gluon_resnetv2.engines.native import ENGINE_HELP, ENGINES
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats.pretrained import FOLDERS, FOLDERS_HELP
from gluon_resnetv2.interop import PACKAGES, is_name
from gluon_resnetv2.spec import (
    IMAGE_SIZES,
    INPUT_BN,
    MODEL_HELP,
    ORDER,
    SHORTCUT_HELP,
    STEM,
    STRIDE_ON,
    UNIT,
    WIDENING,
    Spec,
    named,
)
from gluon_resnetv2.training import checks, schedule
from gluon_resnetv2.training.fields import GROUPS, flag, numbers, option, part, segments, words
from gluon_resnetv2.training.network import OPTIONS, SWITCHES, parse_switches
from gluon_resnetv2.untrusted import faults_of, read_bytes, read_json

# MXNet's optimisers whose whole state is arrays and a count of updates, so that a checkpoint can
# hold it, and equal on every device; those that have a momentum take --mom.
OPTIMIZERS = (
    *("sgd", "nag", "signum", "adam", "adamax", "adagrad", "adadelta"),
    *("rmsprop", "ftrl", "ftml", "lamb"),
)
MOMENTUM = ("sgd", "nag", "signum")
# What recipes of 0.1 may have besides: options, by their defaults, and choices.
GONE = {"update_on_kvstore": False, "lr_power": 2.0}
GONE_CHOICES = {"lr_schedule": "poly", "kv_store": "horovod"}

# Fields of the learning rate's schedule, and of when it ends, which may change as a run goes on.
SCHEDULE = (
    *("num_epochs", "num_steps", "lr", "lr_schedule", "lr_steps", "lr_step_epochs", "lr_factor"),
    *("lr_end", "warmup", "warmup_lr", "warmup_steps", "warmup_epochs", "patience"),
)

FORMAT = 2  # of recipe.json, where 0.1 wrote none
RECIPE_BYTES = 1 << 20  # the most that is read


_network, _data, _optimisation = (partial(option, group) for group in GROUPS[:3])
_machine, _run = (partial(option, group, machine=True) for group in GROUPS[3:])


@dataclass(frozen=True)
class Recipe:
    """A run's definition. Defaults are the paper's CIFAR recipe (appendix).

    Fields with "machine" in their metadata say where and how it runs, not what it computes, but
    for the order of its sums: they may differ when a run goes on. Those with "later" came after
    0.1: at their defaults they do not change the folder that a study names after a recipe.

    Raises:
        UserError: a value is out of range, or two exclude each other.
    """

    model: str = _network("preact110", f"network to train: {MODEL_HELP}")
    init_from: str | None = _network(
        None,
        f"weights to begin with: {FOLDERS_HELP}, a run, an export, a checkpoint, a file that "
        "convert reads, or "
        f"{', '.join(f'{package}:NAME' for package in PACKAGES)}; the network is that of the "
        "weights, and so is the classifier where the classes are the same",
        later=True,
    )
    order: str | None = _network(
        None, "order of operations in a residual unit; default: the model's", choices=tuple(ORDER)
    )
    shortcut: str | None = _network(
        None, f"what sits on each shortcut: {SHORTCUT_HELP}; default: the model's"
    )
    unit: str | None = _network(
        None, "residual unit of a CIFAR network; default: by the depth", choices=tuple(UNIT)
    )
    stem: str | None = _network(
        None,
        "first layers: cifar for small images, imagenet for large ones; default: by the depth",
        choices=tuple(STEM),
    )
    widening: str | None = _network(
        None,
        "shortcut where a unit changes the shape: A pads with zeros, B projects; C projects in "
        "every unit; default: B for bottlenecks and ImageNet networks, else A",
        choices=WIDENING,
    )
    stride_on: str | None = _network(
        None,
        "convolution of a bottleneck that has the stride; default: first",
        choices=STRIDE_ON,
    )
    input_bn: str | None = _network(
        None,
        "batch normalisation of the input: shift learns each channel's offset (beta), plain "
        "learns nothing; default: off",
        choices=INPUT_BN,
    )
    init: str = _network(
        "in", "He initialisation by a layer's fan in or fan out", choices=("in", "out")
    )
    zero_init: bool = _network(
        False,
        "start the last convolution of every residual unit at zero, so that each unit begins as "
        "the identity",
        flag=True,
    )
    switches: str | None = _network(
        None,
        "switches of the network that have no option of their own, as NAME=VALUE,...: "
        f"{', '.join(SWITCHES)}",
        later=True,
    )
    dataset: str = _data("cifar10", "images to train on", choices=NAMES)
    data_dir: str | None = _data(
        None, "folder of the data set; default: the user's cache", machine=True
    )
    image_size: int | None = _data(
        None, "height and width of images in pixels; default: the data set's"
    )
    in_channels: int | None = _data(
        None, "channels of an image, 1 (grey) or 3; default: the data set's", later=True
    )
    test_size: int | None = _data(
        None,
        "imagenet: height and width of images in evaluation, in pixels; default: --image-size",
    )
    augmentation: str = _data(
        None,
        "folder, imagenet: scale an image and move it (pad), or cut a part out (scale, "
        "scale-aspect); default: scale for imagenet, for a folder pad up to 64 pixels, "
        "scale-aspect above",
        choices=("pad", "scale", "scale-aspect"),
    )
    colour: bool = _data(
        True,
        "folder, imagenet: add random light along the principal colours to images that are cut "
        "out (scale, scale-aspect)",
        flag=True,
    )
    flip: bool | None = _data(
        None,
        "mirror half of the training images; default: where the classes are known to allow it",
        flag=True,
        later=True,
    )
    val_fraction: float | None = _data(
        None,
        "folder: part of each class that is held out for testing where --data-dir has no val; "
        "default: 0.2",
        later=True,
    )
    split_seed: int = _data(
        0, "folder: random seed by which --val-fraction chooses images", later=True
    )
    threads: int | None = _data(
        None, "folder, imagenet: threads that read images; default: one per CPU", machine=True
    )
    leave_out: bool = _data(
        False, "folder, imagenet: go without images that can't be decoded", flag=True, later=True
    )
    coarse: bool = _data(False, "cifar100: 20 coarse classes instead of 100", flag=True)
    label_smoothing: float = _data(0.0, "share of each label that is spread over all classes")
    mixup: float = _data(
        0.0,
        "mixup, which blends images and labels in pairs: alpha of the weights' Beta distribution; "
        "0: none",
    )
    mixup_off_epochs: int = _data(
        0, "epochs at the end of the run that go without mixup and CutMix", later=True
    )
    cutmix: float = _data(
        0.0,
        "CutMix, which gives each image a box of another: alpha of the areas' Beta distribution; "
        "with --mixup, each batch has one of the two by chance; 0: none",
        later=True,
    )
    rand_augment: tuple | None = _data(
        None,
        "RandAugment, as N,M: N operations on each image, of strength M, 0 to 10, as in 2,9",
        type=numbers(float),
        later=True,
    )
    random_erasing: float = _data(
        0.0, "probability that a rectangle of an image becomes the mean colour", later=True
    )
    normalise_by: str = _data(
        "source",
        "with --init-from, whose mean, deviation and crop images are prepared by: those that the "
        "weights were trained with (source) or the data set's (data)",
        choices=("source", "data"),
        later=True,
    )
    batch_size: int = _optimisation(128, "images per step, over all devices and workers")
    num_epochs: int | None = _optimisation(
        None, "passes over the training images, instead of --num-steps"
    )
    num_steps: int | None = _optimisation(
        None, "training steps; default: 64000, where --num-epochs does not say"
    )
    lr: float = _optimisation(0.1, "learning rate after the warm-up")
    lr_schedule: str = _optimisation(
        "steps",
        "how the learning rate falls after the warm-up: at --lr-steps, or along a cosine",
        choices=("steps", "cosine"),
    )
    lr_steps: tuple | None = _optimisation(
        None,
        "steps at which the learning rate falls; default: half and 3/4 of all",
        type=numbers(int),
    )
    lr_step_epochs: tuple | None = _optimisation(
        None, "epochs at which the learning rate falls, instead of --lr-steps", type=numbers(float)
    )
    lr_factor: float = _optimisation(
        0.1, "what the learning rate is multiplied by each time it falls"
    )
    lr_end: float = _optimisation(0.0, "learning rate at the end of the cosine")
    warmup: str = _optimisation(
        "constant",
        "learning rate during the warm-up: --warmup-lr throughout, or rising to --lr",
        choices=("constant", "linear"),
    )
    warmup_lr: float = _optimisation(
        None, "learning rate that the warm-up starts with; default: a tenth of --lr"
    )
    warmup_steps: int | None = _optimisation(None, "length of the warm-up in steps; default: 400")
    warmup_epochs: float | None = _optimisation(
        None, "length of the warm-up in epochs, instead of --warmup-steps"
    )
    optimizer: str = _optimisation("sgd", "MXNet's optimiser to train with", choices=OPTIMIZERS)
    mom: float = _optimisation(
        0.9, f"momentum of the optimisers that have one: {', '.join(MOMENTUM)}"
    )
    momentum_correction: bool = _optimisation(
        False,
        "scale momenta whenever the learning rate changes, so that the change takes effect at "
        "once, as in Torch",
        flag=True,
        later=True,
    )
    wd: float = _optimisation(1e-4, "weight decay")
    wd_on: str = _optimisation(
        "all",
        "parameters that weight decay is applied to: all, or weights without biases, gammas and "
        "betas",
        choices=("all", "weights"),
    )
    accumulate: int = _optimisation(
        1, "split each device's share of a batch into so many parts, to save memory"
    )
    sync_bn: bool = _optimisation(
        False,
        "batch normalisation by the statistics of all devices of a process, not by each device's "
        "own",
        flag=True,
    )
    seed: int = _optimisation(
        0, "random seed of the weights, the order of the images and their augmentation"
    )
    ema: float = _optimisation(
        0.0,
        "evaluate and export an exponential moving average of the weights, which decays by this "
        "factor with each step, as in 0.9999; 0: none",
        later=True,
    )
    patience: int = _optimisation(
        0, "end the run after so many epochs without a better test error; 0: never", later=True
    )
    freeze: str | int | None = _optimisation(
        None,
        "with --init-from, layers that learn nothing and keep their batch normalisation's "
        "statistics: stem, a number N (the stem and N stages), or features (all but the "
        "classifier)",
        type=part,
        later=True,
    )
    lr_scale_features: float = _optimisation(
        1.0, "factor of the learning rate of all layers but the classifier", later=True
    )
    gpus: tuple | None = _machine(None, "GPUs to train on, as in 0,1,2,3", type=numbers(int))
    cpus: int = _machine(1, "devices to simulate on the CPU, without --gpus")
    engine: str = _machine("auto", ENGINE_HELP, choices=ENGINES)
    dtype: str = _machine(  # stands there, but changes what is computed
        "float32",
        "precision of the residual units; float64: of everything",
        choices=("float32", "float64", "float16", "bfloat16"),
        machine=False,
    )
    kv_store: str = _machine(
        "device",
        "how devices and workers exchange gradients",
        choices=("local", "device", "nccl", *PARAMETER_SERVER),
    )
    recompute: str | int = _machine(
        "off",
        "save memory: compute the activations of so many segments of the network again in the "
        "backward pass; auto: those that save most",
        type=segments,
    )
    output: str | None = _run(None, "folder of the run; default: a new one in runs/")
    checkpoint_every: str = _run(
        "10m", "steps, or minutes as in 10m, from one checkpoint to the next within an epoch"
    )
    keep: int = _run(2, "checkpoints to keep, besides the best")
    log_every: int = _run(50, "steps between records of the loss")
    export: str = _run(
        "last", "which checkpoint is exported at the end", choices=("last", "best"), later=True
    )

    def __post_init__(self):
        checks.check_fields(self)
        self.spec(classes=10)
        self._fill_in()
        checks.check_together(self)

    def _fill_in(self):
        """Puts numbers where None stands for a default that depends on other fields."""
        values: dict[str, Any] = {}
        if self.num_epochs is None and self.num_steps is None:
            synthetic = self.dataset == "synthetic"
            values.update({"num_epochs": 1} if synthetic else {"num_steps": 64000})
        length = {"num_epochs": self.num_epochs, "num_steps": self.num_steps, **values}
        if self.lr_steps is None and self.lr_step_epochs is None:
            if length["num_steps"] is not None:  # the paper: 32k and 48k of 64k
                steps = length["num_steps"]
                values["lr_steps"] = tuple(sorted({steps // 2, steps * 3 // 4} - {0}))
            else:
                epochs = length["num_epochs"]
                values["lr_step_epochs"] = (epochs / 2, epochs * 3 / 4)
        if self.augmentation is None:
            size = self.image_size or IMAGE_SIZES[self.spec(classes=10).stem]
            own = self.dataset == "folder"
            values["augmentation"] = default_augmentation(size) if own else "scale"
        if self.warmup_lr is None:
            values["warmup_lr"] = self.lr / 10
        if self.warmup_steps is None and self.warmup_epochs is None:
            values["warmup_steps"] = 400
        if self.data_dir is not None:  # runs go on, and are evaluated, from other folders
            values["data_dir"] = os.path.abspath(os.path.expanduser(self.data_dir))
        ours = self.init_from in FOLDERS and not os.path.exists(self.init_from)
        if self.init_from is not None and not (ours or is_name(self.init_from)):
            values["init_from"] = os.path.abspath(os.path.expanduser(self.init_from))
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def epoch_images(self, count: int, workers: int) -> int:
        """How many of `count` training images an epoch takes: all but the rest of `equal_shares`.

        An epoch's last batch is what the others leave, so devices share that equally, too.
        """
        return count - count % self.equal_shares(workers)

    def equal_shares(self, workers: int) -> int:
        """By how many a batch has to divide: with --sync-bn the devices of all workers."""
        return self.devices * workers if self.sync_bn and self.devices > 1 else 1

    @property
    def default_folder(self) -> str:
        """Where a run without --output goes, but for a number behind it."""
        return f"runs/{self.dataset}-{self.model}"

    @property
    def devices(self) -> int:
        """Devices of one worker."""
        return len(self.gpus) if self.gpus else self.cpus

    @property
    def parts(self) -> int:
        """Into how many parts a worker splits its share of a batch."""
        return self.devices * self.accumulate

    @property
    def array_dtype(self) -> str:
        """What images, parameters and losses are: float32, but where all is float64."""
        return "float64" if self.dtype == "float64" else "float32"

    def spec(self, classes: int, in_channels: int | None = None) -> Spec:
        """The network for so many classes.

        Args:
            in_channels: of the data set's images; by default those that the recipe says, or 3.

        Raises:
            UserError: no such network.
        """
        chosen = {name: getattr(self, name) for name in OPTIONS}
        chosen |= {"classes": classes, "in_channels": in_channels or self.in_channels}
        return named(self.model, **chosen, **parse_switches(self.switches))

    @property
    def policy(self) -> Policy:
        """What is done to training images besides moving and mirroring them."""
        operations, strength = self.rand_augment or (0, 0)
        return Policy(int(operations), strength, self.random_erasing)

    def total_steps(self, steps_per_epoch: int) -> int:
        """How many steps the run has."""
        if self.num_steps is not None:
            return self.num_steps
        return (self.num_epochs or 0) * steps_per_epoch

    def mixed_steps(self, steps_per_epoch: int) -> int:
        """Before which step mixup and CutMix end."""
        return self.total_steps(steps_per_epoch) - self.mixup_off_epochs * steps_per_epoch

    def schedule(self, steps_per_epoch: int) -> schedule.WarmUp:
        """The learning rate by step, counted from 0 (see `schedule`)."""

        def in_steps(steps, epochs):
            return steps if epochs is None else round(epochs * steps_per_epoch)

        last, warm = (
            self.total_steps(steps_per_epoch),
            in_steps(self.warmup_steps, self.warmup_epochs),
        )
        main: schedule.Rate
        if self.lr_schedule == "steps":
            boundaries = self.lr_steps
            if boundaries is None:
                boundaries = tuple(in_steps(None, epoch) for epoch in self.lr_step_epochs or ())
            main = schedule.Steps(self.lr, boundaries, self.lr_factor)
        else:
            main = schedule.Cosine(self.lr, last, warm, self.lr_end)
        return schedule.WarmUp(main, warm, self.warmup_lr, linear=self.warmup == "linear")

    def beyond_the_end(self, steps_per_epoch: int) -> str | None:
        """A line that tells what of the learning rate's schedule the run is too short for."""
        end, rate = self.total_steps(steps_per_epoch), self.schedule(steps_per_epoch)
        late = [step for step in getattr(rate.then, "boundaries", ()) if step >= end]
        if rate.steps >= end and self.lr != self.warmup_lr:
            what = f"never comes to --lr {self.lr:g}: its warm-up takes {rate.steps}"
            names = "warmup_steps", "warmup_epochs"
        elif late and self.lr_factor != 1:
            what = f"ends before --lr falls at {', '.join(map(str, late))}"
            names = "lr_steps", "lr_step_epochs"
        else:
            return None
        (name,) = (name for name in names if getattr(self, name) is not None)
        return f"a run of {end} steps {what}; {flag(name)} changes that"

    def to_dict(self) -> dict:
        """The fields as JSON can hold them, with the number of their format."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict) -> Recipe:
        """The recipe that `to_dict` described, or one that is written by hand.

        Raises:
            UserError: as `fields_of`, or a field has a value that it can't take.
        """
        return cls(**cls.fields_of(values))

    @classmethod
    def fields_of(cls, values: dict) -> dict:
        """The fields that a recipe names in JSON, of this or an earlier version.

        Raises:
            UserError: it names what is no option, or an option that is gone, or it is of a later
                format.
        """
        if not isinstance(values, dict):
            raise UserError("a recipe is a JSON object of options and their values")
        fields = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        if (number := fields.pop("format", FORMAT)) not in range(1, FORMAT + 1):
            raise UserError(f"a recipe of format {number} is of a later version than this one")
        for name, value in fields.items():
            if value != GONE.get(name, value) or value == GONE_CHOICES.get(name, ...):
                raise UserError(
                    f"gluon_resnetv2 0.1 was the last to know {flag(name)} {value}; leave it out"
                )
        fields = {name: value for name, value in fields.items() if name not in GONE}
        for name in set(fields) - {field.name for field in dataclasses.fields(cls)}:
            raise UserError(f"a recipe has no '{name}'")
        return fields

    def differences(
        self, other: Recipe, machine: bool = True, schedule: bool = True
    ) -> dict[str, tuple]:
        """{field: (value here, value in other)} where they differ.

        Args:
            machine: with the fields of where and how it runs.
            schedule: with those of the learning rate's schedule.
        """
        return {
            field.name: (getattr(self, field.name), getattr(other, field.name))
            for field in dataclasses.fields(self)
            if (machine or not field.metadata["machine"])
            and (schedule or field.name not in SCHEDULE)
            and getattr(self, field.name) != getattr(other, field.name)
        }

    def check_goes_on(self, other: Recipe, source: str | Path) -> None:
        """A run of this recipe goes on with one that differs in its schedule, or in how it runs.

        Args:
            source: of this recipe, to name.

        Raises:
            UserError: they differ elsewhere.
        """
        differences = self.differences(other, machine=False, schedule=False)
        for name, values in differences.items():
            before, now = (words([(name, value)]) or f"no {flag(name)}" for value in values)
            raise UserError(
                f"{source} was started with {before}, not with {now}; "
                f"only the schedule can change (--num-epochs, --lr, ...): leave out {flag(name)}, "
                "or name a new --output"
            )


def read_values(path: str | Path) -> Any:
    """What a recipe.json says, unchecked; one that is written by hand may have a byte order mark.

    Raises:
        UserError: it can't be read, or is no JSON.
    """
    with faults_of(path):
        return read_json(read_bytes(path, RECIPE_BYTES).removeprefix(codecs.BOM_UTF8))
