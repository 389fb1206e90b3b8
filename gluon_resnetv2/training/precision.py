"""Training in reduced precision and with shared batch statistics: what can be had, loss scaling."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import mxnet as mx
from mxnet import gluon

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.layers import DTYPES

CHUNK = 200  # arrays that multi_all_finite takes; one more ends the process


class LossScaler:
    """Keeps float16 gradients between underflow and overflow (Micikevicius et al., *Mixed
    Precision Training*, arXiv:1710.03740, section 3.2).

    The loss is multiplied by `scale`, hence every gradient. Where one overflows all the same, the
    step is to be left out and the scale halves; after `window` steps in a row without, it doubles.

        autograd.backward([loss * scaler.scale for loss in losses])
        count = batch_size * scaler.scale
        trainer.allreduce_grads()
        if scaler.passed(net.collect_params().values()):
            trainer.update(count)

    Summed first, the gradients are the same on every device of every worker, and an overflow
    anywhere shows everywhere: all leave the step out together.

    MXNet's own (contrib.amp) looks at the first device's gradients only.

    Args:
        scale: the one to start with.
        window: steps without an overflow before it doubles.
        most: what it is not doubled beyond.
    """

    def __init__(self, scale: float = 2.0**16, window: int = 2000, most: float = 2.0**24):
        self.scale, self.window, self.most = float(scale), window, float(most)
        self._passed = 0  # steps since the scale changed

    def passed(self, parameters: Iterable[gluon.Parameter]) -> bool:
        """Whether all gradients are finite; sets `scale` for the next step. Waits for the devices.

        Raises:
            UserError: a gradient is not finite although nothing was scaled.
        """
        finite = all_finite([g for p in parameters if p.grad_req != "null" for g in p.list_grad()])
        if not finite and self.scale <= 1:
            raise UserError(
                "the gradients overflow float16 without any loss scale; try a smaller --lr, or "
                "--dtype float32"
            )
        self._passed = self._passed + 1 if finite else 0
        if not finite:
            self.scale = max(self.scale / 2, 1.0)
        elif self._passed == self.window:
            self.scale, self._passed = min(self.scale * 2, self.most), 0
        return finite

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps: plain numbers."""
        return {"scale": self.scale, "passed": self._passed}

    def load(self, state: dict[str, float]) -> None:
        """Goes on from a `state`."""
        self.scale, self._passed = float(state["scale"]), int(state["passed"])


def all_finite(arrays: Sequence[mx.nd.NDArray]) -> bool:
    """Whether every number of the arrays, on whatever devices, is finite. Waits for them."""
    by_device: dict[mx.Context, list] = {}
    for array in arrays:
        by_device.setdefault(array.context, []).append(array)
    flags = [
        mx.nd.multi_all_finite(*device[i : i + CHUNK], num_arrays=len(device[i : i + CHUNK]))
        for device in by_device.values()
        for i in range(0, len(device), CHUNK)
    ]
    return all(flag.asscalar() for flag in flags)


# -- What can be had -------------------------------------------------------------------------------


def check_dtype(dtype: str, gpus: Sequence[int] | None) -> None:
    """Checks that MXNet can train in it here: float16 on GPUs, bfloat16 on CPUs with AVX-512.

    oneDNN emulates bfloat16, with the same results, where AVX-512 comes without instructions for
    it (avx512_bf16).

    Raises:
        UserError: `dtype` is not for these devices.
    """
    if dtype == "float16" and not gpus:
        raise UserError(
            "--dtype float16 needs --gpus: MXNet has no float16 convolution on CPUs; use bfloat16"
        )
    if dtype == "bfloat16" and gpus:
        raise UserError("--dtype bfloat16 is for CPUs: MXNet 1.9.1 has none on GPUs; use float16")
    if dtype == "bfloat16" and not cpu_has_bfloat16():
        raise UserError("--dtype bfloat16 needs a CPU with AVX-512 and MXNet's oneDNN; use float32")


def cpu_has_bfloat16() -> bool:
    """Whether MXNet can convolve bfloat16 here; found out by doing so."""
    one = mx.nd.amp_cast(mx.nd.ones((1, 1, 1, 1)), dtype=DTYPES["bfloat16"])
    try:
        mx.nd.Convolution(one, one, kernel=(1, 1), num_filter=1, no_bias=True).wait_to_read()
    except mx.MXNetError:
        return False
    return True


# MXNet gives all CPU devices the same few pieces of temporary memory, one at a time. A synchronised
# batch normalisation holds its piece while it waits for the other devices, which wait for theirs.
SPACES_VARIABLE, SPACES = "MXNET_CPU_TEMP_COPY", 65536


def check_sync(devices: Sequence[mx.Context], dropout: bool = False) -> None:
    """Refuses devices that would wait for each other for ever when they share batch statistics.

    Several CPU devices, which are for trials (one computes the same), need an environment variable
    that MXNet reads once, at its first operation: each operator gets memory of its own. Nothing may
    read from an array, or make one, between the first device's forward pass and the last one's.

    Args:
        dropout: whether the network drops out: its random numbers are shared, too.

    Raises:
        UserError: they would wait.
    """
    if len(devices) < 2 or devices[0].device_type != "cpu":
        return
    if dropout:
        raise UserError(
            "synchronised batch normalisation and dropout exclude each other on several CPU "
            "devices; use one, which computes the same"
        )
    if int(os.environ.get(SPACES_VARIABLE, 0)) < SPACES:
        raise UserError(
            "synchronised batch normalisation on several CPU devices would wait for ever; use one, "
            f"which computes the same, or start with {SPACES_VARIABLE}={SPACES}"
        )
