"""What this machine is and has: its CPUs and GPUs, MXNet's wheel and the libraries that it needs.

Nothing here imports MXNet or numpy.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gluon_resnetv2.errors import UserError, install, uninstall

CPU_WHEEL = "mxnet"
GPU_WHEEL = "mxnet-cu112"

# Libraries of the system that its wheels need, and do not bring: Debian's and Fedora's packages.
SYSTEM_LIBRARIES = {
    "libgomp.so.1": ("libgomp1", "libgomp"),
    "libquadmath.so.0": ("libquadmath0", "libquadmath"),
    "libstdc++.so.6": ("libstdc++6", "libstdc++"),
}


class CannotLoad(ImportError, UserError):
    """MXNet cannot be imported here; the message says why, and the way out."""


class NotInstalled(CannotLoad, ModuleNotFoundError):
    """No MXNet is installed."""


def wheels() -> list[str]:
    """Which of MXNet's two wheels are installed: CPU_WHEEL, GPU_WHEEL, both or none."""
    from importlib import metadata  # slow to import, and rarely needed

    found = []
    for name in (CPU_WHEEL, GPU_WHEEL):
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(name)
            found.append(name)
    return found


def require() -> None:
    """Raises CannotLoad where MXNet cannot be imported for a reason that we know."""
    require_python()
    require_machine()
    if importlib.util.find_spec("mxnet") is None:
        raise not_installed()
    installed = wheels()
    if len(installed) > 1:
        raise CannotLoad(
            f"{CPU_WHEEL} and {GPU_WHEEL} are installed over each other: "
            f"{uninstall(CPU_WHEEL, GPU_WHEEL)}, then {_install_mxnet()}"
        )
    if GPU_WHEEL in installed and driver() is None:
        raise CannotLoad(
            f"{GPU_WHEEL} needs NVIDIA's driver, and libcuda.so.1 is not found: install the "
            f"driver, or use the CPU: {uninstall(GPU_WHEEL)}, then {install('cpu')}"
        )


def require_python() -> None:
    if not (3, 10) <= sys.version_info[:2] <= (3, 14):
        raise CannotLoad(
            f"MXNet 1.9.1 runs on Python 3.10 to 3.14, and this is {platform.python_version()}: "
            "make an environment with one of those"
        )


def require_machine() -> None:
    if sys.platform == "win32" or platform.machine().lower() in ("aarch64", "arm64"):
        raise CannotLoad(
            f"MXNet 1.9.1 has no wheel that loads on {platform.system()} with an "
            f"{platform.machine()} processor: use Linux on x86-64; what `export --to onnx` writes "
            "there, ONNX Runtime serves here"
        )


def not_installed() -> NotInstalled:
    way_out = _install_mxnet()
    for wheel in wheels():  # as after uninstalling the one of two that lay over each other
        way_out = f"{wheel} has lost its files: {uninstall(wheel)}, then {way_out}"
    return NotInstalled(f"MXNet is not installed: {way_out}", name="mxnet")


def _install_mxnet():
    return f"{install('cpu')}, with cu112 for cpu where there is an NVIDIA GPU"


def missing_libraries() -> list[tuple[str, str]]:
    missing = []
    for library, packages in SYSTEM_LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing.append(packages)
    return missing


# CPUs


def cpus() -> int:
    """The CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hyper_threads() -> bool:
    """Whether CPUs may share a core, as far as Linux tells."""
    with contextlib.suppress(OSError):
        return Path("/sys/devices/system/cpu/smt/active").read_text().strip() != "0"
    return True


def cpu_flags() -> frozenset[str]:
    """The instruction sets of this processor in Linux's words; none elsewhere than on x86-64."""
    if sys.platform == "linux" and platform.machine() == "x86_64":
        with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("flags"):
                    return frozenset(line.split(":")[1].split())
    return frozenset()


def tiles_granted() -> bool:
    """Asks Linux to let this process, and those forked from it, use the AMX tile registers.

    Source: Documentation/arch/x86/xstate.rst of Linux.
    """
    arch_prctl, req_xcomp_perm, xfeature_xtiledata = 158, 0x1023, 18
    arguments = (ctypes.c_long(n) for n in (arch_prctl, req_xcomp_perm, xfeature_xtiledata))
    return ctypes.CDLL(None).syscall(*arguments) == 0


# GPUs


# What libmxnet.so of the GPU wheel links to, as folder and file of NVIDIA's wheels. What these
# need themselves they find beside them.
CUDA_LIBRARIES = {
    "cuda_runtime": "libcudart.so.11.0",
    "cublas": "libcublas.so.11",
    "cufft": "libcufft.so.10",
    "curand": "libcurand.so.10",
    "cusolver": "libcusolver.so.11",
    "cuda_nvrtc": "libnvrtc.so.11.2",
    "nvtx": "libnvToolsExt.so.1",
    "nccl": "libnccl.so.2",
    "cudnn": "libcudnn.so.8",
}


def cuda_libraries() -> list[Path]:
    """Those of CUDA_LIBRARIES that NVIDIA's wheels have brought."""
    nvidia = importlib.util.find_spec("nvidia")
    roots = (nvidia and nvidia.submodule_search_locations) or []
    paths = (
        Path(root, folder, "lib", file) for folder, file in CUDA_LIBRARIES.items() for root in roots
    )
    return [path for path in paths if path.exists()]


class Gpu(NamedTuple):
    """A GPU as the driver describes it."""

    name: str
    capability: tuple[int, int]  # compute capability: (8, 6) for an RTX 3090

    @property
    def supported(self) -> bool:
        """Whether the GPU wheel has kernels for this GPU.

        The wheel holds machine code for 5.0, 6.0, 7.0, 8.0 and 8.6, which runs within the same
        major version, and no PTX, which newer GPUs could translate.
        """
        return 5 <= self.capability[0] <= 8


def gpus() -> list[Gpu]:
    """The GPUs that NVIDIA's driver shows, in the order of their numbers. Needs no MXNet.

    Raises UserError where there is no driver, or it does not start or is too old for CUDA 11.
    """
    cuda = driver()
    if cuda is None:
        raise UserError("NVIDIA's driver is not installed: libcuda.so.1 is not found")
    no_device, name_length = 100, 256
    count, device, value = (ctypes.c_int() for _ in range(3))
    name = ctypes.create_string_buffer(name_length)
    status = cuda.cuInit(0)
    if status == no_device:
        return []
    if status:
        raise UserError(f"NVIDIA's driver does not start (cuInit answers {status}): reinstall it")
    cuda.cuDriverGetVersion(ctypes.byref(value))
    if value.value < 11000:
        version = f"{value.value // 1000}.{value.value % 1000 // 10}"
        raise UserError(f"NVIDIA's driver ends at CUDA {version}, and MXNet needs 11.0: update it")
    cuda.cuDeviceGetCount(ctypes.byref(count))
    found = []
    for index in range(count.value):
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, name_length, device)
        capability = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
            cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            capability.append(value.value)
        major, minor = capability
        found.append(Gpu(name.value.decode(), (major, minor)))
    return found


def driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def check_gpus(ids: Sequence[int]) -> None:
    """Raises UserError unless MXNet can compute on every GPU of `ids`, numbered from 0."""
    if not ids:
        return
    installed = wheels()
    if installed == [CPU_WHEEL]:
        raise UserError(
            f"GPU {ids[0]} cannot be used: the MXNet installed is the CPU wheel; "
            f"{uninstall(CPU_WHEEL)}, then {install('cu112')}"
        )
    found = gpus()
    for index in ids:
        if not 0 <= index < len(found):
            there = f"{len(found)}, numbered from 0" if found else "none"
            raise UserError(f"there is no GPU {index}: NVIDIA's driver shows {there}")
        gpu = found[index]
        if GPU_WHEEL in installed and not gpu.supported:
            raise UserError(
                f"GPU {index} ({gpu.name}) has compute capability "
                f"{gpu.capability[0]}.{gpu.capability[1]}, and {GPU_WHEEL} 1.9.1 has kernels for "
                "5.0 to 8.9 only: use another GPU, or the CPU"
            )
