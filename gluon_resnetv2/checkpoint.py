"""A network's parameters in a file, and a run's checkpoints: what training and export both read.

RUN/checkpoints/step-00001234/
    net.params       the network as it is evaluated and exported
    training.params  what training needs besides: the optimiser's arrays, each device's statistics;
                     where net.params is an average (--ema), the parameters that are trained, too
    state.json       step, epoch and every other number
    manifest.json    the SHA-256 of these, without which a checkpoint counts for nothing
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import recover_folder, sha256, whole_folder, write_json
from gluon_resnetv2.formats.manifest import PREPARING, Input
from gluon_resnetv2.formats.params_file import save_arrays
from gluon_resnetv2.layers import is_statistic
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import Spec
from gluon_resnetv2.untrusted import Fault, check_fields, faults_of, read_bytes, read_json

FORMAT = 2
REMAINS = r"\.step-\d{8}\.(old|\w{8}\.(new|before))"
STATE_BYTES = 1 << 24  # and of a manifest
FILES = ("net.params", "training.params", "state.json")


@dataclass(frozen=True, kw_only=True)
class State:
    """Every number of a training that is no array; state.json has it.

    Attributes:
        step, epoch: how many are done.
        updates: of the parameters so far.
        loss_scale: float16's, and for how many steps it has held.
        meter: sums of the epoch under way, of each device.
        seconds: of training.
        best: {"step", "epoch", "test_error"} of the best checkpoint so far.
        metrics: the last epoch's.
        recipe: `Recipe.to_dict`.
        classes: a name for each logit.
        input: how images are prepared; state.json has what of it is not always the same.
        engine: that it was trained with, "mxnet" or "native".
    """

    step: int
    epoch: int
    steps_per_epoch: int
    updates: int
    loss_scale: dict[str, float] | None
    meter: list
    seconds: float
    best: dict[str, Any] | None
    metrics: dict[str, Any] | None
    devices: int
    workers: int
    recipe: dict[str, Any]
    spec: Spec
    classes: Sequence[str]
    input: Input
    engine: str = "mxnet"

    @classmethod
    def from_dict(cls, values: Any) -> State:
        """What `to_dict` wrote, in any version of this package.

        Raises:
            Fault: it has a field that can't be one, which the message names.
        """
        checks = {name: partial(_is, kind) for name, kind in KINDS.items()}
        check_fields(values, {**checks, "spec": Spec.from_dict})
        spec = Spec.from_dict(values["spec"])
        described = Input.from_dict({**values["input"], **NORMALISED}, spec.in_channels)
        known = {name: values[name] for name in checks}
        engine = str(values.get("engine") or known["recipe"].get("engine", "mxnet"))
        return cls(**{**known, "spec": spec, "input": described, "engine": engine})

    def to_dict(self) -> dict[str, Any]:
        """The content of state.json."""
        described = {name: getattr(self.input, name) for name in ("shape", *PREPARING)}
        return {**vars(self), "spec": self.spec.to_dict(), "input": described}


NUMBER, OPTIONAL = (int, float), (dict, type(None))
KINDS = {  # of what JSON says, for each field
    **dict.fromkeys(("step", "epoch", "steps_per_epoch", "updates", "devices", "workers"), int),
    **dict.fromkeys(("recipe", "input"), dict),
    **dict.fromkeys(("loss_scale", "best", "metrics"), OPTIONAL),
    **dict.fromkeys(("meter", "classes"), list),
    "seconds": NUMBER,
}
# Of a network's input in training, whatever the data.
NORMALISED = {name: getattr(Input, name) for name in ("name", "layout", "colour", "values")}


def _is(kinds, value) -> bool:
    return isinstance(value, kinds)


def save_parameters(net: ResNetV2, path: str | Path, dtype: str | None = None) -> None:
    """Writes every parameter in MXNet's format, as "arg:NAME" or "aux:NAME".

    Args:
        dtype: what they are written as; by default what they are.

    Raises:
        OSError: the file can't be written, or not whole.
    """
    kinds = {True: "aux", False: "arg"}
    values = parameters_of(net, dtype).items()
    save_arrays(path, {f"{kinds[is_statistic(name)]}:{name}": value for name, value in values})


def parameters_of(net: ResNetV2, dtype: str | None = None) -> dict[str, mx.nd.NDArray]:
    """Every parameter by its name, on the first device.

    Args:
        dtype: what they are cast to; by default what they are.
    """
    mx.nd.waitall()  # moving statistics are still being written otherwise
    arrays = {name: value.list_data()[0] for name, value in net.collect_params().items()}
    return {name: array.astype(dtype) if dtype else array for name, array in arrays.items()}


def load_parameters(
    net: ResNetV2, path: str | Path, devices: Sequence[mx.Context] | None = None
) -> None:
    """Initialises `net` on `devices`, by default the CPU, from what `save_parameters` wrote.

    Raises:
        UserError: the file is missing, no parameter file, or does not fit the network.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is missing")
    try:
        values = mx.nd.load(str(path))
        values = {name.rpartition(":")[2]: value for name, value in values.items()}
    except (mx.MXNetError, ValueError, AttributeError):
        raise UserError(f"{path} is not an MXNet parameter file") from None
    set_parameters(net, values, path, devices)


def set_parameters(
    net: ResNetV2,
    values: Mapping[str, mx.nd.NDArray | np.ndarray],
    source: str | Path,
    devices: Sequence[mx.Context] | None = None,
) -> None:
    """Initialises `net` on `devices`, by default the CPU, with an array for each parameter's name.

    Args:
        source: the file to name where they don't fit.

    Raises:
        UserError: they don't fit the network.
    """
    parameters = net.collect_params()
    for name in sorted(set(parameters) ^ set(values)):
        side = "is missing in" if name in parameters else "is not this network's, but in"
        raise UserError(f"parameter {name} {side} {source}")
    for name, parameter in parameters.items():
        found = values[name].shape
        if found != parameter.shape:
            raise UserError(
                f"parameter {name} in {source} has shape {found}, not {parameter.shape}"
            )
    net.initialize(mx.init.Zero(), ctx=devices or mx.cpu(), force_reinit=True)
    for name, parameter in parameters.items():
        parameter.set_data(mx.nd.array(values[name], dtype=parameter.dtype))


def write_checkpoint(
    run: str | Path, net: ResNetV2, arrays: dict[str, mx.nd.NDArray], state: State
) -> Path:
    """Writes RUN/checkpoints/step-NNNNNNNN, whole or not at all; returns its path.

    Args:
        arrays: what training needs besides the network's parameters.
        state: every number; its step names the checkpoint.

    Raises:
        OSError: the folder can't be written to; the checkpoints before are still there.
    """
    path = Path(run) / "checkpoints" / f"step-{state.step:08d}"
    with whole_folder(path) as temporary:
        save_parameters(net, temporary / "net.params")
        save_arrays(temporary / "training.params", arrays)
        write_json(temporary / "state.json", state.to_dict())
        sums = {name: sha256(temporary / name) for name in FILES}
        write_json(temporary / "manifest.json", {"format": FORMAT, "sha256": sums})
    return path


def checkpoints(run: str | Path) -> list[Path]:
    """The folders of a run's checkpoints, oldest first."""
    folders = Path(run).glob("checkpoints/step-*")
    return sorted(path for path in folders if re.fullmatch(r"step-\d{8}", path.name))


def remove_checkpoints(
    run: str | Path, keep: int, best: int | None = None, damaged: Collection[Path] = ()
) -> None:
    """Removes all checkpoints but the last `keep` that are not damaged, and that of step `best`."""
    found = checkpoints(run)
    kept = [path for path in found if path not in damaged][-keep:]
    for path in set(found) - set(kept):
        if best is None or path.name != f"step-{best:08d}":
            with contextlib.suppress(OSError):  # the next time, then
                # Renamed first: a checkpoint is whole or has another name.
                path.rename(path.with_name(f".{path.name}.old"))
    _remove_remains(run)


def recover_checkpoints(run: str | Path) -> None:
    """Removes what a killed process has left unfinished, once what it was to replace is back."""
    for path in _remains(run):
        if path.suffix == ".before":
            recover_folder(path.with_name(path.name[1:].split(".")[0]))
    _remove_remains(run)


def _remove_remains(run):
    for path in _remains(run):
        shutil.rmtree(path, ignore_errors=True)


def _remains(run) -> list[Path]:
    """What `whole_folder` and `remove_checkpoints` rename checkpoints to; no other names."""
    found = Path(run).glob("checkpoints/.step-*")
    return [path for path in found if re.fullmatch(REMAINS, path.name)]


def read_checkpoint(path: Path) -> State:
    """The state of a checkpoint, all of whose files are what was written.

    Raises:
        UserError: a file is missing, or is not the one that was written.
    """
    with faults_of(path / "manifest.json"):
        manifest = read_json(read_bytes(path / "manifest.json", STATE_BYTES))
        check_fields(manifest, {"format": partial(_is, int)})
        if manifest["format"] != FORMAT:
            raise Fault("has a format that this version does not know")
        check_fields(manifest, {"sha256": partial(_is, dict)})
        check_fields(manifest["sha256"], dict.fromkeys(FILES, partial(_is, str)), "sha256.")
    for name in FILES:
        if not (path / name).is_file():
            raise UserError(f"{path / name} is missing")
        try:
            found = sha256(path / name)
        except OSError as error:
            raise UserError(f"{path / name} can't be read: {error.strerror}") from None
        if found != manifest["sha256"][name]:
            raise UserError(f"{path / name} is damaged: its SHA-256 differs from the manifest's")
    with faults_of(path / "state.json"):
        values = read_json(read_bytes(path / "state.json", STATE_BYTES), finite=False)
        state = State.from_dict(values)
    if path.name != f"step-{state.step:08d}":
        raise UserError(f"{path} holds step {state.step}")
    return state


def valid_checkpoints(
    run: str | Path, warn: Callable[[str], object] = print
) -> Iterator[tuple[Path, State]]:
    """Path and state of each checkpoint that is as it was written, newest first.

    Args:
        warn: is told, in a line each, what is left out and why.
    """
    for path in reversed(checkpoints(run)):
        try:
            state = read_checkpoint(path)
        except UserError as error:
            warn(f"skipping a checkpoint: {error}")
            continue
        yield path, state


def choose_checkpoint(
    run: str | Path, which: str = "last", *, warn: Callable[[str], object] = print
) -> tuple[Path, State]:
    """Path and state of a run's "last" valid checkpoint, its "best", or that of a step's number.

    Raises:
        UserError: there is no such checkpoint.
    """
    if not checkpoints(run):
        raise UserError(f"{run} holds no checkpoint; name the folder of a run, such as runs/NAME")
    for path, state in valid_checkpoints(run, warn):
        best = (state.best or {}).get("step")
        if which == "last" or (which == "best" and state.step == best):
            return path, state
        if which.isdecimal() and state.step == int(which):
            return path, state
    raise UserError(f"{run} holds no valid checkpoint '{which}'; choose last, best or a step")


def load_run(
    run: str | Path, checkpoint: str = "last", devices: Sequence[mx.Context] | None = None
) -> tuple[ResNetV2, State]:
    """The network of a run's checkpoint, on `devices`, and its state.

    Raises:
        UserError: `run` holds no such checkpoint.
    """
    path, state = choose_checkpoint(run, checkpoint, warn=partial(print, file=sys.stderr))
    net = ResNetV2(state.spec)
    load_parameters(net, path / "net.params", devices)
    return net, state
