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
import re
import sys
import types
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from gluon_resnetv2 import machine
from gluon_resnetv2.errors import install

# What could no longer be done because MXNet was imported before us, one line each.
too_late: list[str] = []

# Whether oneDNN may use the AMX tiles of this processor; known once MXNet is imported.
amx = "not asked for yet: MXNet is not imported"

# How many threads MXNet's engine computes with; known once it is imported, on Linux.
threads = 0


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


# The import hook


class _Finder:
    """Finds the modules of `_AROUND` where Python would, and has them executed within ours."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        around = _AROUND.get(name)
        spec = around and PathFinder.find_spec(name, path, target)
        if spec and spec.loader:
            load = functools.partial(_execute, spec.loader, around)
            spec.loader.exec_module = load  # type: ignore[method-assign]  # of this loader alone
        return spec or None


class _LastResort:
    """Asked after every other finder: says how to install MXNet instead of 'No module named'.

    importlib.util.find_spec("mxnet") then raises as well, rather than return None.
    """

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> None:
        if name == "mxnet":
            machine.require_python()
            machine.require_machine()
            raise machine.not_installed()


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
    machine.require()
    with _quiet():
        try:
            _before()
            yield
        except OSError as error:  # the dynamic linker's
            extra = "cu112" if machine.GPU_WHEEL in machine.wheels() else "cpu"
            way_out = f"{install(extra)} again"
            if missing := machine.missing_libraries():
                debian, fedora = (" ".join(names) for names in zip(*missing))
                way_out = f"apt install {debian}, or dnf install {fedora}"
            raise machine.CannotLoad(
                f"MXNet's library does not load ({error}): {way_out}"
            ) from error
    _after(mxnet)


@contextlib.contextmanager
def _around_gluoncv_check(check: Any) -> Iterator[None]:
    """GluonCV looks for PyTorch below 2.0; a newer one beside it must not stop its MXNet half."""
    yield
    require_pytorch = check._require_pytorch_version

    def tolerant(*versions):
        try:
            require_pytorch(*versions)
        except RuntimeError as error:
            raise ImportError(str(error)) from error  # what GluonCV takes for "no PyTorch"

    check._require_pytorch_version = tolerant


@contextlib.contextmanager
def _around_opencv(_module: types.ModuleType) -> Iterator[None]:
    """OpenCV without a system library that it needs prints `sys.path`, and leaves its folder there,
    with a `typing` of its own, which processes that take this path would import for Python's.
    """
    path = list(sys.path)
    try:
        with contextlib.redirect_stdout(None):
            yield
    except ImportError:
        sys.path[:] = path
        raise


def _without(hidden: str, alias: str | None = None):
    """For a module that imports a slow one for little: it finds none, as where that is missing.

    Args:
        alias: what the module calls it; it is then imported when something of it is used.
    """
    parent, _, last = hidden.rpartition(".")

    def import_(name, globals=None, locals=None, fromlist=(), level=0):
        if name == hidden or (name == parent and last in (fromlist or ())):
            raise ModuleNotFoundError(f"{hidden} is imported later", name=hidden)
        return __import__(name, globals, locals, fromlist, level)

    @contextlib.contextmanager
    def around(module: Any) -> Iterator[None]:
        module.__builtins__ = {**vars(builtins), "__import__": import_}
        yield
        if alias:
            setattr(module, alias, _Later(hidden))

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
    "cv2": _around_opencv,  # MXNet and GluonCV import it
    "gluoncv": _quiet,
    "gluoncv.check": _around_gluoncv_check,
}


# Before MXNet is imported


def _before() -> None:
    _provide_numpy_names()
    _provide_distutils()
    _use_every_core()
    _keep_threads_awake()
    # Or MXNet prints a line for each graph that it fuses; it asks once, when it binds the first.
    os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")
    if machine.GPU_WHEEL in machine.wheels():
        _load_cuda()


# How threads wait: in a loop, and in how many rounds, which are libgomp's own unless there are more
# threads than CPUs.
_WAITING = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "300000"}


def _provide_numpy_names() -> None:
    """MXNet and GluonCV name what numpy has dropped, in 1.24 or in 2.0 and later."""
    import numpy

    names: dict[str, Any] = {
        python_type.__name__: python_type for python_type in (bool, float, int)
    }
    if _numpy_2():
        names |= {"NAN": numpy.nan, "NaN": numpy.nan, "Inf": numpy.inf, "PINF": numpy.inf}
        names |= {"NINF": -numpy.inf, "PZERO": 0.0, "NZERO": -0.0}
        names |= {"alltrue": numpy.all, "sometrue": numpy.any, "product": numpy.prod}
        names |= {"round_": numpy.round, "in1d": numpy.isin, "trapz": vars(numpy)["trapezoid"]}
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
    package: Any
    version: Any
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


def _use_every_core() -> bool:
    """MXNet leaves half of the CPUs to hyper-threading, even where there is none: tells it not to.

    Returns whether there was something to tell.
    """
    if (
        machine.cpus() == 1
        or machine.hyper_threads()
        or any(name in os.environ for name in _THREADS_VARIABLES)
    ):
        return False
    os.environ[_THREADS_VARIABLES[1]] = str(machine.cpus())  # MXNet's own: it concerns nobody else
    return True


def _keep_threads_awake() -> None:
    """Has OpenMP's threads wait for each other in a loop, where nobody has said how they are to.

    By default they do so for some milliseconds; but where a process has more of them than CPUs,
    they sleep at once, and an inference of 0.6 ms takes 1.4.
    """
    if any(name in os.environ for name in _WAITING):
        return
    os.environ.update(_WAITING)
    with contextlib.suppress(OSError):  # of MXNet's own loading this will be told
        ctypes.CDLL("libgomp.so.1")  # reads them now
    for name in _WAITING:  # another OpenMP would wait for ever
        del os.environ[name]


def _leave_threads_to_the_engine() -> None:
    """Has this thread compute alone what little MXNet computes in it, as copies between layouts.

    Its engine has threads for everything else. Two teams would be more of them than CPUs.
    """
    global threads
    with contextlib.suppress(OSError):  # MXNet for macOS brings another OpenMP
        openmp = ctypes.CDLL("libgomp.so.1")
        threads = threads or openmp.omp_get_max_threads()
        if os.environ.get("MXNET_ENGINE_TYPE") != "NaiveEngine":  # which computes all here
            openmp.omp_set_num_threads(1)


def _load_cuda() -> None:
    """The dynamic linker, which knows nothing of site-packages, takes what is already loaded."""
    for path in machine.cuda_libraries():
        ctypes.CDLL(str(path))


# After MXNet is imported


def _after(mxnet: types.ModuleType) -> None:
    _leave_threads_to_the_engine()
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

        # NumPy 1 knows no such name, to its stubs.
        with numpy.printoptions(legacy="1.25"):  # type: ignore[arg-type, unused-ignore]
            return str(value)


def _mend_text(mxnet: types.ModuleType) -> None:
    ctypes_modules = (sys.modules[f"mxnet._ctypes.{name}"] for name in ("ndarray", "symbol"))
    for module in (*ctypes_modules, mxnet.symbol.symbol, mxnet.io.io):
        module.str = _Text


def _mend_records(recordio: Any) -> None:
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
    if not machine.cpu_flags() >= _AMX_FLAGS:
        amx = "not on this processor"
    elif not machine.tiles_granted():
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
