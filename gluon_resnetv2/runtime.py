"""Makes MXNet 1.9.1, of 2022, load and compute on today's Python, numpy, processors and GPUs.

`prepare()` runs with `import gluon_resnetv2`. It imports nothing and changes nothing yet: it only
sees to it that the first `import mxnet`, whoever writes it, finds what it needs (`_before`) and is
mended once it is there (`_after`). Files of installed packages are never touched.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import ctypes
import functools
import importlib.util
import os
import platform
import re
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
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

# What could no longer be done because MXNet was imported before us, one line each.
too_late: list[str] = []

# Whether oneDNN may use the AMX tiles of this processor; known once MXNet is imported.
amx = "not asked for yet: MXNet is not imported"


class CannotLoad(ImportError, UserError):
    """MXNet cannot be imported here; the message says why, and the way out."""


class NotInstalled(CannotLoad, ModuleNotFoundError):
    """No MXNet is installed."""


def prepare() -> None:
    """Arranges that MXNet is prepared and mended when it is imported. Safe to call again.

    Where MXNet was imported before, does what still can be done, and warns once of what cannot,
    which is also kept in `too_late`.
    """
    if _Finder in sys.meta_path:
        return
    sys.meta_path.insert(0, _Finder)
    sys.meta_path.append(_LastResort)
    if "mxnet" in sys.modules:
        if _use_every_core():
            too_late.append(
                "MXNet computes on half of the CPUs: it was imported before gluon_resnetv2; import "
                "gluon_resnetv2 first, or set OMP_NUM_THREADS"
            )
        with _quiet():
            _before()
        _after(sys.modules["mxnet"])
        if amx == "on":
            too_late.append(
                "AMX may stay off: MXNet was imported before gluon_resnetv2, and oneDNN keeps the "
                "instruction sets that it had at its first operation; import gluon_resnetv2 first"
            )
        for line in too_late:
            warnings.warn(line, RuntimeWarning, stacklevel=3)


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
    _require_python()
    _require_machine()
    if importlib.util.find_spec("mxnet") is None:
        raise _not_installed()
    installed = wheels()
    if len(installed) > 1:
        raise CannotLoad(
            f"{CPU_WHEEL} and {GPU_WHEEL} are installed over each other: "
            f"{uninstall(CPU_WHEEL, GPU_WHEEL)}, then {_install_mxnet()}"
        )
    if GPU_WHEEL in installed and _driver() is None:
        raise CannotLoad(
            f"{GPU_WHEEL} needs NVIDIA's driver, and libcuda.so.1 is not found: install the "
            f"driver, or use the CPU: {uninstall(GPU_WHEEL)}, then {install('cpu')}"
        )


def _require_python() -> None:
    if not (3, 10) <= sys.version_info[:2] <= (3, 14):
        raise CannotLoad(
            f"MXNet 1.9.1 runs on Python 3.10 to 3.14, and this is {platform.python_version()}: "
            "make an environment with one of those"
        )


def _require_machine() -> None:
    if sys.platform == "win32" or platform.machine().lower() in ("aarch64", "arm64"):
        raise CannotLoad(
            f"MXNet 1.9.1 has no wheel that loads on {platform.system()} with an "
            f"{platform.machine()} processor: use Linux on x86-64; what `export --to onnx` writes "
            "there, ONNX Runtime serves here"
        )


def _not_installed() -> NotInstalled:
    way_out = _install_mxnet()
    for wheel in wheels():  # as after uninstalling the one of two that lay over each other
        way_out = f"{wheel} has lost its files: {uninstall(wheel)}, then {way_out}"
    return NotInstalled(f"MXNet is not installed: {way_out}", name="mxnet")


def _install_mxnet():
    return f"{install('cpu')}, with cu112 for cpu where there is an NVIDIA GPU"


# The import hook


class _Finder:
    """Finds the modules of `_AROUND` where Python would, and has them executed within ours."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        around = _AROUND.get(name)
        spec = around and PathFinder.find_spec(name, path, target)
        if spec and spec.loader:
            spec.loader.exec_module = functools.partial(_execute, spec.loader, around)
        return spec or None


class _LastResort:
    """Asked after every other finder: says how to install MXNet instead of 'No module named'.

    importlib.util.find_spec("mxnet") then raises as well, rather than return None.
    """

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> None:
        if name == "mxnet":
            _require_python()
            _require_machine()
            raise _not_installed()


def _execute(loader, around, module: types.ModuleType) -> None:
    del loader.exec_module  # it shadowed the loader's own method; nothing of us stays behind
    with around(module):
        loader.exec_module(module)


@contextlib.contextmanager
def _quiet(_module=None) -> Iterator[None]:
    """What old packages warn of while they load (deprecated numpy names) is no user's to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextlib.contextmanager
def _around_mxnet(mxnet: types.ModuleType) -> Iterator[None]:
    require()
    with _quiet():
        try:
            _before()
            yield
        except OSError as error:  # the dynamic linker's
            way_out = f"{install('cu112' if GPU_WHEEL in wheels() else 'cpu')} again"
            if missing := _missing_libraries():
                debian, fedora = (" ".join(names) for names in zip(*missing))
                way_out = f"apt install {debian}, or dnf install {fedora}"
            raise CannotLoad(f"MXNet's library does not load ({error}): {way_out}") from error
    _after(mxnet)


def _missing_libraries() -> list[tuple[str, str]]:
    missing = []
    for library, packages in SYSTEM_LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing.append(packages)
    return missing


@contextlib.contextmanager
def _around_gluoncv_check(check: types.ModuleType) -> Iterator[None]:
    """GluonCV looks for PyTorch below 2.0; a newer one beside it must not stop its MXNet half."""
    yield
    require_pytorch = check._require_pytorch_version

    def tolerant(*versions):
        try:
            require_pytorch(*versions)
        except RuntimeError as error:
            raise ImportError(str(error)) from error  # what GluonCV takes for "no PyTorch"

    check._require_pytorch_version = tolerant


def _without(hidden: str, name: str | None = None):
    """For a module that imports a slow one for little: it finds none, as where that is missing.

    Args:
        name: what the module calls it; it is then imported when something of it is used.
    """
    parent, _, last = hidden.rpartition(".")

    def import_(name, globals=None, locals=None, fromlist=(), level=0):
        if name == hidden or (name == parent and last in (fromlist or ())):
            raise ModuleNotFoundError(f"{hidden} is imported later", name=hidden)
        return __import__(name, globals, locals, fromlist, level)

    @contextlib.contextmanager
    def around(module: types.ModuleType) -> Iterator[None]:
        module.__builtins__ = {**vars(builtins), "__import__": import_}
        yield
        if name:
            setattr(module, name, _Later(hidden))

    return around


class _Later:
    """A module that is imported when something of it is used."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str):
        return getattr(importlib.import_module(self._name), attribute)


_AROUND = {
    "mxnet": _around_mxnet,
    # Two seconds for the base of a retired class, FeedForward; a second for a few functions.
    "mxnet.model": _without("sklearn.base"),
    "mxnet.contrib.quantization": _without("scipy.stats", "stats"),
    "mxnet.test_utils": _without("scipy.stats", "ss"),
    "gluoncv": _quiet,
    "gluoncv.check": _around_gluoncv_check,
}


# Before MXNet is imported


def _before() -> None:
    _provide_numpy_names()
    _provide_distutils()
    _use_every_core()
    if GPU_WHEEL in wheels():
        _load_cuda()


def _provide_numpy_names() -> None:
    """MXNet and GluonCV name what numpy has dropped, in 1.24 or in 2.0 and later."""
    import numpy

    names = {python_type.__name__: python_type for python_type in (bool, float, int)}
    if _numpy_2():
        names |= {"NAN": numpy.nan, "NaN": numpy.nan, "Inf": numpy.inf, "PINF": numpy.inf}
        names |= {"NINF": -numpy.inf, "PZERO": 0.0, "NZERO": -0.0}
        names |= {"alltrue": numpy.all, "sometrue": numpy.any, "product": numpy.prod}
        names |= {"round_": numpy.round, "in1d": numpy.isin, "trapz": numpy.trapezoid}
        names["msort"] = functools.partial(numpy.sort, axis=0)
        names |= dict.fromkeys(("mirr", "npv", "pmt", "ppmt", "pv", "rate"), _moved)
    for name, value in names.items():
        # Not hasattr, for which numpy has a FutureWarning in store.
        vars(numpy).setdefault(name, value)


def _moved(*_, **__):
    raise RuntimeError("numpy's financial functions are in numpy_financial")


def _numpy_2() -> bool:
    import numpy

    return int(numpy.__version__.split(".")[0]) > 1


def _provide_distutils() -> None:
    """MXNet and GluonCV compare versions by distutils.version, which Python 3.12 dropped."""
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("distutils.version")  # Python's, or the one of setuptools
        return
    package, version = (
        importlib.util.module_from_spec(ModuleSpec(name, None, is_package=True))
        for name in ("distutils", "distutils.version")
    )
    package.version = version
    version.LooseVersion = version.StrictVersion = _Version
    sys.modules.update({"distutils": package, "distutils.version": version})


@functools.total_ordering
class _Version:
    """A version that orders as its numbers do: 1.9 < 1.10. Words in it do not count."""

    def __init__(self, text: str):
        self.numbers = [int(number) for number in re.findall(r"\d+", text)]

    def __eq__(self, other) -> bool:
        return self.numbers == _Version._of(other).numbers

    def __lt__(self, other) -> bool:
        return self.numbers < _Version._of(other).numbers

    @staticmethod
    def _of(other) -> _Version:
        return other if isinstance(other, _Version) else _Version(other)


_THREADS_VARIABLES = ("OMP_NUM_THREADS", "MXNET_OMP_MAX_THREADS")


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


def _use_every_core() -> bool:
    """MXNet leaves half of the CPUs to hyper-threading, even where there is none: tells it not to.

    Returns whether there was something to tell.
    """
    if cpus() == 1 or hyper_threads() or any(name in os.environ for name in _THREADS_VARIABLES):
        return False
    os.environ[_THREADS_VARIABLES[1]] = str(cpus())  # MXNet's own: it concerns nobody else
    return True


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
    roots = nvidia.submodule_search_locations if nvidia else []
    paths = (
        Path(root, folder, "lib", file) for folder, file in CUDA_LIBRARIES.items() for root in roots
    )
    return [path for path in paths if path.exists()]


def _load_cuda() -> None:
    """The dynamic linker, which knows nothing of site-packages, takes what is already loaded."""
    for path in cuda_libraries():
        ctypes.CDLL(str(path))


# After MXNet is imported


def _after(mxnet: types.ModuleType) -> None:
    mxnet.nd.NDArray.__array__ = _as_numpy
    _mend_sparse(mxnet)
    if _numpy_2():
        _mend_text(mxnet)
        _mend_records(mxnet.recordio)
    # A process that exits while custom operators wait for their turn hangs for ever.
    atexit.unregister(_wait_for_all)
    atexit.register(_wait_for_all)
    _enable_amx(mxnet)


def _as_numpy(array, dtype=None, copy=None):
    """NDArray.__array__: without it numpy reads arrays element by element, and fails."""
    if copy is False:
        raise ValueError("an NDArray becomes a numpy array only by a copy")
    values = array.asnumpy()
    return values if dtype is None else values.astype(dtype, copy=False)


def _mend_sparse(mxnet: types.ModuleType) -> None:
    """`mx.nd.array` asks for scipy.sparse.csr.csr_matrix, deprecated in SciPy 1.8, gone in 2.0."""
    sparse = mxnet.nd.utils.spsp
    if isinstance(sparse, types.ModuleType):
        mxnet.nd.utils.spsp = mxnet.nd.sparse.spsp = types.SimpleNamespace(
            csr=sparse, csr_matrix=sparse.csr_matrix, coo_matrix=sparse.coo_matrix
        )


class _IsText(type):
    def __instancecheck__(cls, value) -> bool:
        return isinstance(value, str)


class _Text(str, metaclass=_IsText):
    """`str` for MXNet's operators, which do not know the attribute "(np.int64(3),)" of numpy 2."""

    __slots__ = ()

    def __new__(cls, value=""):
        if not isinstance(value, (tuple, list)):
            return str(value)
        import numpy

        with numpy.printoptions(legacy="1.25"):
            return str(value)


def _mend_text(mxnet: types.ModuleType) -> None:
    ctypes_modules = (sys.modules[f"mxnet._ctypes.{name}"] for name in ("ndarray", "symbol"))
    for module in (*ctypes_modules, mxnet.symbol.symbol, mxnet.io.io):
        module.str = _Text


def _mend_records(recordio: types.ModuleType) -> None:
    """`pack` and `pack_img` use ndarray.tostring, which numpy 2.3 dropped."""
    import numpy

    class Bytes(numpy.ndarray):
        tostring = numpy.ndarray.tobytes

    class Packing:
        """Of the modules that `recordio` uses, with arrays of the class above."""

        def __init__(self, module, name, result):
            self._module, function = module, getattr(module, name)
            setattr(self, name, lambda *given, **named: result(function(*given, **named)))

        def __getattr__(self, name):
            return getattr(self._module, name)

    recordio.np = Packing(numpy, "asarray", lambda array: array.view(Bytes))
    if recordio.cv2:
        recordio.cv2 = Packing(
            recordio.cv2, "imencode", lambda done: (done[0], done[1].view(Bytes))
        )


def _wait_for_all() -> None:
    import mxnet

    with contextlib.suppress(mxnet.MXNetError):  # of work whose result nobody wanted
        mxnet.nd.waitall()


# The oneDNN 2.4.4 inside MXNet can use AMX, but leaves it off unless this variable says otherwise;
# it is from before Linux gave out the tile registers on request only, and does not request them:
# its first tile instruction would kill the process (SIGILL).
_ISA_VARIABLE = "DNNL_MAX_CPU_ISA"
_AMX_ISA = "AVX512_CORE_AMX"
# All that the value allows. A processor without some of it might lose others by being limited.
_AVX512_FLAGS = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"}
_AMX_FLAGS = _AVX512_FLAGS | {"amx_tile", "amx_int8", "amx_bf16"}


def _enable_amx(mxnet: types.ModuleType) -> None:
    """Has oneDNN use AMX where the processor and Linux allow it; float32 is not affected."""
    global amx
    if not cpu_flags() >= _AMX_FLAGS:
        amx = "not on this processor"
    elif not _tiles_granted():
        amx = "refused by Linux"
    elif _ISA_VARIABLE in os.environ:
        amx = f"left to {_ISA_VARIABLE}={os.environ[_ISA_VARIABLE]}"
    else:
        amx = "on"
        os.environ[_ISA_VARIABLE] = _AMX_ISA
        # oneDNN reads the variable once, at its first operation, which is this one. Then it goes:
        # a program started from here inherits it, but not the permission.
        one = mxnet.nd.ones((1, 1, 1, 1))
        mxnet.nd.Convolution(one, one, kernel=(1, 1), num_filter=1, no_bias=True).wait_to_read()
        del os.environ[_ISA_VARIABLE]


def cpu_flags() -> frozenset[str]:
    """The instruction sets of this processor in Linux's words; none elsewhere than on x86-64."""
    if sys.platform == "linux" and platform.machine() == "x86_64":
        with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("flags"):
                    return frozenset(line.split(":")[1].split())
    return frozenset()


def _tiles_granted() -> bool:
    """Asks Linux to let this process, and those forked from it, use the AMX tile registers.

    Source: Documentation/arch/x86/xstate.rst of Linux.
    """
    arch_prctl, req_xcomp_perm, xfeature_xtiledata = 158, 0x1023, 18
    arguments = (ctypes.c_long(n) for n in (arch_prctl, req_xcomp_perm, xfeature_xtiledata))
    return ctypes.CDLL(None).syscall(*arguments) == 0


# GPUs


class Gpu(NamedTuple):
    """A GPU as the driver describes it."""

    name: str
    capability: tuple[int, int]  # compute capability: (8, 6) for an RTX 3090

    @property
    def supported(self) -> bool:
        """Whether the GPU wheel has kernels for it.

        The wheel holds machine code for 5.0, 6.0, 7.0, 8.0 and 8.6, which runs within the same
        major version, and no PTX, which newer GPUs could translate.
        """
        return 5 <= self.capability[0] <= 8


def gpus() -> list[Gpu]:
    """The GPUs that NVIDIA's driver shows, in the order of their numbers. Needs no MXNet.

    Raises UserError where there is no driver, or it does not start or is too old for CUDA 11.
    """
    cuda = _driver()
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
        found.append(Gpu(name.value.decode(), tuple(capability)))
    return found


def _driver() -> ctypes.CDLL | None:
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
