"""The native operator's library: compiled where it is missing, and loaded into MXNet once."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import mxnet as mx
from mxnet.base import _LIB, OpHandle, c_str, check_call, mx_uint
from mxnet.ndarray.register import _make_ndarray_function
from mxnet.symbol.register import _make_symbol_function

from gluon_resnetv2.errors import UserError, install
from gluon_resnetv2.files import cache_folder, sha256, whole_file
from gluon_resnetv2.machine import cpu_flags

SOURCES = [Path(__file__).with_name(name) for name in ("trunk.cc", "update.cc")]
OPERATOR = "resnetv2_trunk"
_ALONE = threading.RLock()  # only one thread compiles, and MXNet loads in several steps
_loaded: ctypes.CDLL | None = None

# oneDNN from the package index: what it runs with, and what it is compiled with.
RUNTIME, HEADERS = "onednn-cpu-gomp", "onednn-devel-cpu-gomp"


def load() -> ctypes.CDLL:
    """Has MXNet know the operator, as `mx.sym.resnetv2_trunk`; compiles it at its first use.

    Returns:
        What the library has beside the operator, as its sources describe it.

    Raises:
        UserError: something that it needs is not installed, or does not work.
    """
    global _loaded
    with _ALONE:
        if _loaded:
            return _loaded
        path = library()
        try:
            _register(path)
        except mx.MXNetError as error:
            raise UserError(f"MXNet can't load {path}: {str(error).splitlines()[-1]}") from error
        _loaded = ctypes.CDLL(str(path))
        _loaded.resnetv2_store.restype = ctypes.c_void_p
        _loaded.resnetv2_plan.restype = ctypes.POINTER(ctypes.c_char_p)
        _loaded.resnetv2_update.restype = ctypes.c_void_p
        return _loaded


def _register(path: Path) -> None:
    """As `mx.library.load`, which in half a second makes the functions of all operators anew."""
    check_call(_LIB.MXLoadLib(c_str(str(path)), mx_uint(0)))
    handle = OpHandle()
    check_call(_LIB.NNGetOpHandle(c_str(OPERATOR), ctypes.byref(handle)))
    mx.nd.resnetv2_trunk = _make_ndarray_function(handle, OPERATOR, OPERATOR)
    mx.sym.resnetv2_trunk = _make_symbol_function(handle, OPERATOR, OPERATOR)


def library() -> Path:
    """The compiled library for this processor, this MXNet and this oneDNN, in the user's cache.

    Raises:
        UserError: as `load`.
    """
    with _ALONE:
        return _library()


def _library() -> Path:
    command, sources, path = _compilation()
    if _is_whole(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _has_failed(command, path):
            print("compiling the native engine, once for this machine", file=sys.stderr)
            try:
                _compile(command, sources, path)
                return path
            except _CompilerError as error:
                _log(path).write_text(str(error), encoding="utf-8")
        raise UserError(_why(command, path))
    except OSError as error:
        raise UserError(
            f"{error.filename or path} can't be written: {error.strerror or error}; "
            "set XDG_CACHE_HOME to another folder"
        ) from None


def fault() -> str:
    """Why it can't be compiled, or "" where it is, or nobody has tried yet."""
    try:
        command, _, path = _compilation()
        return _why(command, path) if _has_failed(command, path) else ""
    except UserError as error:
        return str(error)


def _compilation() -> tuple[list[str], list[Path], Path]:
    """The compiler with its options, what it is to compile, and where the library belongs."""
    runtime, headers = _file(RUNTIME, "libdnnl.so.3"), _file(HEADERS, "oneapi/dnnl/dnnl.hpp")
    compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if not shutil.which(compiler[0]):
        raise UserError(
            f"the native engine needs a C++ compiler, and there is no {compiler[0]}; "
            "install g++, or set CXX"
        )
    package = Path(mx.__file__).parent
    command = [
        *compiler, "-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared", "-w",
        f"-I{package / 'include'}", f"-I{headers.parents[2]}", f"-Wl,-rpath,{runtime.parent}",
        "-fno-trapping-math", "-fno-math-errno",  # so that choices and rounding vectorise
        "-ffp-contract=off",  # an update's bits are MXNet's
    ]  # fmt: skip
    sources = [*SOURCES, package / "src" / "lib_api.cc", runtime]
    identity = [
        *(source.read_text() for source in SOURCES),
        *command,
        *map(str, sources),
        metadata.version(RUNTIME),
        mx.__version__,
        *sorted(cpu_flags()),
    ]
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    return command, sources, cache_folder() / f"native-{digest}.so"


class _CompilerError(Exception):
    """What a compiler has complained of."""


def _compile(command: list[str], sources: list[Path], path: Path) -> None:
    """Compiles the sources side by side, and links them with the last one.

    Raises:
        _CompilerError: one of them can't be compiled.
        OSError: a file can't be written.
    """

    def run(*words: object) -> None:
        done = subprocess.run(
            [*command, *map(str, words)], capture_output=True, errors="replace", check=False
        )
        if done.returncode:
            raise _CompilerError(done.stderr)

    *texts, runtime = sources
    with whole_file(path) as temporary, tempfile.TemporaryDirectory() as scratch:
        objects = [Path(scratch, f"{text.stem}.o") for text in texts]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda text, to: run("-c", text, "-o", to), texts, objects))
        run(*objects, runtime, "-o", temporary)
        if not temporary.is_file():
            raise _CompilerError("it writes nothing")
        _sum(path).write_text(sha256(temporary), encoding="utf-8")


def _is_whole(path: Path) -> bool:
    """Whether the library is there as it was compiled; loading any other may end the process."""
    if not path.is_file() or not _sum(path).is_file():
        return False
    return _sum(path).read_text(encoding="utf-8", errors="replace") == sha256(path)


def _sum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _log(path: Path) -> Path:
    """What a compiler has complained of."""
    return path.with_suffix(".log")


def _has_failed(command: list[str], path: Path) -> bool:
    """Whether the compiler that is there has failed before, and would again."""
    log, compiler = _log(path), shutil.which(command[0]) or command[0]
    return log.is_file() and log.stat().st_mtime > os.stat(compiler).st_ctime


def _why(command: list[str], path: Path) -> str:
    lines = _log(path).read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if "error" in line]
    why = (errors or lines or ["no reason given"])[0]
    return f"{command[0]} can't compile the native engine: {why} ({_log(path)} has it all)"


def _file(package: str, ending: str) -> Path:
    """Where the file of an installed package is."""
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        raise UserError(f"the native engine needs {package}: {install('native')}") from None
    for file in files:
        if str(file).endswith(ending):
            return Path(file.locate()).resolve()
    raise UserError(f"the package {package} has no {ending}; install it again")
