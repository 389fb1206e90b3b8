"""Which recipes are refused, and in which words: each mistake names its option and the way out."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING

from gluon_resnetv2.data.randaugment import STRONGEST
from gluon_resnetv2.engines.native import DTYPES
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.spec import IMAGE_SIZE_MAX
from gluon_resnetv2.training.fields import fits, flag

if TYPE_CHECKING:
    from gluon_resnetv2.training.recipe import Recipe

CORRECTED = ("sgd", "nag")  # those whose momentum holds the learning rate; Signum's does not
FLOAT32_MAX = 3.4e38  # MXNet's optimisers take no larger number


def check_fields(recipe: Recipe) -> None:
    """Each field by itself: its choices, its type and its range.

    Raises:
        UserError: one can't be as it is.
    """
    _check_choices(recipe)
    _check_types(recipe)
    _check_numbers(recipe)


def check_together(recipe: Recipe) -> None:
    """What fields have to do with each other.

    Raises:
        UserError: some exclude each other, or have no effect.
    """
    _check_schedule(recipe)
    _check_correction(recipe)
    _check_beginning(recipe)
    _check_devices(recipe)
    check_batch(recipe, workers=1)


def check_batch(recipe: Recipe, workers: int) -> None:
    """A batch needs an image for every part that it is split into.

    Raises:
        UserError: it is smaller.
    """
    if recipe.batch_size < recipe.parts * workers:
        what = f"the number of devices, {recipe.devices}"
        if recipe.accumulate > 1:
            what += f", times --accumulate, {recipe.accumulate}"
        if workers > 1:
            what += f", times the workers, {workers}"
        raise UserError(
            f"--batch-size {recipe.batch_size} is smaller than {what}; every device needs an "
            "image each time"
        )


def check_shares(recipe: Recipe, workers: int) -> None:
    """With --sync-bn the devices need equal shares of a batch.

    MXNet weighs each device's mean alike, however large its share.

    Raises:
        UserError: the batch does not divide.
    """
    if rest := recipe.batch_size % recipe.equal_shares(workers):
        raise UserError(
            f"--sync-bn needs equal shares of a batch, and {recipe.batch_size} images do not "
            f"divide by {recipe.devices * workers} devices; --batch-size "
            f"{recipe.batch_size - rest or recipe.devices * workers} does"
        )


def _check_choices(recipe):
    for field in dataclasses.fields(recipe):
        value, choices = getattr(recipe, field.name), field.metadata["choices"]
        if choices and value not in choices and not (value is None and field.default is None):
            raise UserError(f"{flag(field.name)} is one of {', '.join(choices)}, not {value!r}")


def _check_types(recipe):
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if not fits(field, value):
            raise UserError(f"a recipe's {field.name} can't be {value!r}")


def _check_numbers(recipe):
    for name in (
        *("batch_size", "num_epochs", "num_steps", "accumulate", "cpus", "keep", "log_every"),
        *("threads",),
    ):
        value = getattr(recipe, name)
        if value is not None and value < 1:
            raise UserError(f"{flag(name)} must be at least 1, not {value}")
    for name in (
        *("lr", "lr_factor", "lr_end", "warmup_lr", "warmup_steps"),
        *("warmup_epochs", "wd", "seed", "mixup", "mixup_off_epochs", "cutmix", "patience"),
        *("split_seed",),
    ):
        value = getattr(recipe, name)
        if value is not None and not 0 <= value <= FLOAT32_MAX:
            raise UserError(f"{flag(name)} must be a finite number, at least 0: {value}")
    for name in ("label_smoothing", "mom", "ema"):
        value = getattr(recipe, name)
        if not 0 <= value < 1:
            raise UserError(f"{flag(name)} must be from 0 to below 1: {value}")
    if not 0 <= recipe.random_erasing <= 1:
        raise UserError(f"--random-erasing must be from 0 to 1: {recipe.random_erasing}")
    if recipe.rand_augment is not None and not _fits_policy(recipe.rand_augment):
        raise UserError(
            f"--rand-augment needs a whole number from 1 on and a strength from 0 to "
            f"{STRONGEST}, as in 2,9, not {','.join(map(str, recipe.rand_augment))}"
        )
    for name in ("image_size", "test_size"):
        size = getattr(recipe, name)
        if size is not None and not 1 <= size <= IMAGE_SIZE_MAX:
            raise UserError(f"{flag(name)} must be 1 to {IMAGE_SIZE_MAX}, not {size}")
    if recipe.in_channels not in (None, 1, 3):
        raise UserError(f"--in-channels must be 1 or 3, not {recipe.in_channels}")
    if recipe.seed >= 2**31:
        raise UserError(f"--seed must be below 2^31: {recipe.seed}")
    if not re.fullmatch(r"0*[1-9]\d{0,17}|(\d{1,9}\.?\d{0,9}|\.\d{1,9})m", recipe.checkpoint_every):
        raise UserError(
            f"--checkpoint-every needs steps or minutes, as in 500 or 10m: "
            f"{recipe.checkpoint_every}"
        )


def _fits_policy(numbers: tuple) -> bool:
    """Whether they are RandAugment's number of operations and their strength."""
    return len(numbers) == 2 and numbers[0] in range(1, 1000) and 0 <= numbers[1] <= STRONGEST


def _check_schedule(recipe):
    for one, other in (
        ("num_epochs", "num_steps"),
        ("lr_steps", "lr_step_epochs"),
        ("warmup_steps", "warmup_epochs"),
    ):
        if getattr(recipe, one) is not None and getattr(recipe, other) is not None:
            raise UserError(f"{flag(one)} and {flag(other)} exclude each other")
    for name in ("lr_steps", "lr_step_epochs"):
        boundaries = list(getattr(recipe, name) or ())
        if not all(0 < n < math.inf for n in boundaries) or boundaries != sorted(boundaries):
            raise UserError(f"{flag(name)} needs rising positive numbers, as in 82,123")


def _check_correction(recipe):
    if not recipe.momentum_correction:
        return
    what, warms_up = None, recipe.warmup_steps or recipe.warmup_epochs
    if recipe.optimizer not in CORRECTED:
        what = f"is for --optimizer {' and '.join(CORRECTED)}, not {recipe.optimizer}"
    elif recipe.kv_store == "dist_async":
        what = "can't reach momenta on the servers of --kv-store dist_async; use dist_sync"
    elif 0 in (recipe.lr, recipe.warmup_lr if warms_up else None):
        what = "scales by the ratio of two learning rates; none, --warmup-lr too, may be 0"
    if what:
        raise UserError(f"--momentum-correction {what} (or --no-momentum-correction)")


def _check_beginning(recipe):
    stages, what = len(recipe.spec(classes=10).stages), recipe.freeze
    if what is not None:
        if what not in ("stem", "features", *range(1, stages + 1)) or isinstance(what, bool):
            raise UserError(
                f"--freeze is stem, features or a number of stages, 1 to {stages}: {what}"
            )
        if recipe.init_from is None:
            raise UserError("--freeze needs --init-from: what does not learn has to be given")
    if not 0 < recipe.lr_scale_features <= FLOAT32_MAX:
        raise UserError(f"--lr-scale-features must be above 0: {recipe.lr_scale_features}")
    if what == "features" and recipe.lr_scale_features != 1:
        raise UserError("--lr-scale-features has no effect with --freeze features")
    if recipe.init_from is None and recipe.normalise_by != "source":
        raise UserError("--normalise-by has no effect without --init-from")
    if recipe.init_from is not None and recipe.zero_init:
        raise UserError(
            "--zero-init has no effect with --init-from, which has weights for all units; "
            "add --no-zero-init"
        )


def _check_devices(recipe):
    gpus = recipe.gpus
    if gpus is not None and (not gpus or len(set(gpus)) < len(gpus) or min(gpus) < 0):
        raise UserError("--gpus needs numbers that differ, as in 0,1,2,3")
    if gpus and recipe.cpus > 1:
        raise UserError("--gpus and --cpus exclude each other")
    if recipe.kv_store == "nccl" and not gpus:
        raise UserError("--kv-store nccl needs --gpus; CPUs use 'device' or 'local'")
    segments = recipe.recompute
    if segments not in ("auto", "off") and (type(segments) is not int or segments < 1):
        raise UserError(f"--recompute must be auto, off or at least 1, not {segments}")
    if recipe.engine == "native" and (fault := native_fault(recipe)):
        raise UserError(f"--engine native: {fault}")
    if recipe.kv_store == "dist_async" and recipe.dtype == "float16":
        raise UserError(
            "--kv-store dist_async updates on servers, which can't scale the loss as float16 "
            "needs; use dist_sync"
        )
    if recipe.kv_store == "dist_async" and recipe.ema:
        raise UserError(
            "--kv-store dist_async has other weights on each worker, not one average; leave "
            "out --ema, or use dist_sync"
        )


def native_fault(recipe: Recipe) -> str:
    """Why the native engine can't train by a recipe anywhere, or ""."""
    chosen = {
        "gpus": recipe.gpus,
        "recompute": recipe.recompute != "off",
        "sync_bn": recipe.sync_bn,
        "freeze": recipe.freeze is not None,
    }
    for name in (name for name, value in chosen.items() if value):
        return f"{flag(name)} is for MXNet's graph alone"
    if recipe.dtype not in DTYPES:
        return f"native computes in {' or '.join(DTYPES)}, not {recipe.dtype}"
    return ""
