"""A network's parameters in a file, and a run's checkpoints: what training and export both read."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import mxnet as mx

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import whole_folder, write_json
from gluon_resnetv2.layers import is_statistic
from gluon_resnetv2.net import ResNetV2


def save_parameters(net: ResNetV2, path: str | Path) -> None:
    """Writes every parameter in MXNet's format, as "arg:NAME" or "aux:NAME", in float32.

    Raises:
        OSError: the file can't be written, or not whole.
    """
    mx.nd.waitall()  # moving statistics are still being written otherwise
    values = {
        f"{'aux' if is_statistic(name) else 'arg'}:{name}": parameter.list_data()[0].astype(
            "float32"
        )
        for name, parameter in net.collect_params().items()
    }
    try:
        mx.nd.save(str(path), values)
        # MXNet's writer does not notice a full disk; its reader does.
        whole = set(mx.nd.load(str(path))) == set(values)
    except mx.MXNetError:
        whole = False
    if not whole:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def load_parameters(net: ResNetV2, path: str | Path) -> None:
    """Initialises `net` on the CPU from what `save_parameters` wrote.

    Raises:
        UserError: the file is missing, no parameter file, or does not fit the network.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is missing")
    try:
        values = mx.nd.load(str(path))
        values = {name.partition(":")[2]: value for name, value in values.items()}
    except (mx.MXNetError, ValueError, AttributeError):
        raise UserError(f"{path} is not an MXNet parameter file") from None
    parameters = net.collect_params()
    for name in sorted(set(parameters) ^ set(values)):
        side = "is missing in" if name in parameters else "is not this network's, but in"
        raise UserError(f"parameter {name} {side} {path}")
    for name, parameter in parameters.items():
        if values[name].shape != parameter.shape:
            raise UserError(
                f"parameter {name} in {path} has shape {values[name].shape}, not {parameter.shape}"
            )
    net.initialize(mx.init.Zero(), ctx=mx.cpu(), force_reinit=True)
    for name, parameter in parameters.items():
        parameter.set_data(values[name])


def write_checkpoint(run: str | Path, net: ResNetV2, step: int, state: dict) -> None:
    """Writes parameters and `state` to RUN/checkpoints/step-NNNNNNNN, in place of the one before.

    Raises:
        OSError: the folder can't be written to; the checkpoint before is then still there.
    """
    with whole_folder(Path(run) / "checkpoints" / f"step-{step:08d}") as temporary:
        save_parameters(net, temporary / "net.params")
        write_json(temporary / "state.json", {"step": step, **state})
    for older in checkpoints(run)[:-1]:
        shutil.rmtree(older)


def checkpoints(run: str | Path) -> list[Path]:
    """The folders of a run's checkpoints, oldest first."""
    return sorted(Path(run).glob("checkpoints/step-*"))


def read_state(checkpoint: Path) -> dict:
    """What a checkpoint says besides its parameters.

    Raises:
        UserError: it can't be read.
    """
    path = checkpoint / "state.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path} is missing or damaged") from None
