"""MXNet as a user meets it after `import gluon_resnetv2`, mostly in processes of their own."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2 import fixes, machine
from gluon_resnetv2.errors import UserError, install, uninstall
from gluon_resnetv2.machine import CPU_WHEEL, GPU_WHEEL, CannotLoad
from tests import fake_driver

ROOT = Path(__file__).parents[1]

needs_gpu_wheel = pytest.mark.skipif(
    GPU_WHEEL not in machine.wheels(), reason=f"{GPU_WHEEL} is not installed"
)


def python(code: str, *, path: Path | None = None, **environment: str):
    """Runs `code` in a new Python with warnings as errors; what is in `path` hides all others."""
    folders = [*([path] if path else []), ROOT, os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, folders)), **environment}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def output(*arguments, **settings) -> str:
    """What such a Python prints; it must end well."""
    done = python(*arguments, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def last_line(*arguments, **settings) -> str:
    """The last line of the traceback that such a Python ends with."""
    done = python(*arguments, **settings)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


# The import


def test_importing_the_package_imports_neither_mxnet_nor_numpy():
    code = "import sys, gluon_resnetv2; print({'mxnet', 'numpy'} & set(sys.modules))"
    assert output(code) == "set()"


def test_mxnet_is_imported_and_used_without_a_warning():
    code = """
import gluon_resnetv2
import mxnet as mx
import numpy as np
values = np.arange(6, dtype="float32").reshape(2, 3)
assert np.array_equal(np.asarray(mx.nd.array(values)), values)
net = mx.gluon.nn.Dense(2)
net.initialize()
loader = mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(values), batch_size=2)
print([net(batch).shape for batch in loader])
"""
    assert output(code) == "[(2, 2)]"


def test_mxnet_is_imported_without_what_is_slow_and_rarely_used():
    """It computes with it all the same: scipy.stats is loaded when it is used."""
    pytest.importorskip("sklearn")
    code = (
        "import sys, gluon_resnetv2, mxnet as mx\n"
        "print({'sklearn', 'pandas', 'scipy.stats'} & set(sys.modules))\n"
        "print(round(mx.test_utils.ss.norm.ppf(0.975), 3), mx.model.FeedForward.__bases__)\n"
        "p, q = [0.5, 0.5], [0.25, 0.75]\n"
        "print(round(mx.contrib.quantization.stats.entropy(p, q), 4))"
    )
    # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75) = 0.1438
    assert output(code).splitlines() == ["set()", "1.96 (<class 'object'>,)", "0.1438"]


@pytest.mark.skipif(np.__version__ < "1.24", reason="has numpy.bool, so that it does not fail")
def test_mxnet_that_failed_to_be_imported_before_is_imported():
    code = """
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import mxnet
    except (AttributeError, OSError):  # numpy.bool, or CUDA's libraries
        print("failed")
import gluon_resnetv2, mxnet
print(mxnet.nd.array([[1, 2]]).shape)
"""
    assert output(code).split("\n", 1) == ["failed", "(1, 2)"]


def test_gluoncv_is_imported_beside_a_pytorch_that_it_refuses(tmp_path):
    pytest.importorskip("gluoncv", exc_type=ImportError)  # its OpenCV needs libraries, too
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("__version__ = '2.13.0+cpu'\n")
    code = """
import gluon_resnetv2, gluoncv
print(gluoncv.model_zoo.get_model("cifar_resnet20_v2").features.__class__.__name__)
"""
    assert output(code, path=tmp_path) == "HybridSequential"


def test_an_opencv_that_does_not_load_leaves_the_path_alone(tmp_path):
    """As opencv-python does on a machine without X's libraries."""
    (tmp_path / "cv2").mkdir()
    (tmp_path / "cv2/__init__.py").write_text(
        "import sys; sys.path.insert(1, __path__[0]); print(sys.path); raise ImportError('libxcb')"
    )
    code = """
import sys, gluon_resnetv2, mxnet
print(mxnet.recordio.cv2, [folder for folder in sys.path if folder.endswith("cv2")])
"""
    assert output(code, path=tmp_path) == "None []"


def test_nothing_of_the_hook_stays_behind():
    assert type(mx.__spec__.loader) is SourceFileLoader
    assert set(vars(mx.__spec__.loader)) == set(vars(SourceFileLoader("name", "path")))
    found = importlib.util.find_spec("mxnet.gluon")
    assert found.origin == mx.gluon.__file__


def test_finding_mxnet_does_not_import_it():
    code = """
import sys, importlib.util, gluon_resnetv2
spec = importlib.util.find_spec("mxnet")
print(spec.name, spec.origin.endswith("__init__.py"), spec.loader.is_package("mxnet"))
print("mxnet" in sys.modules, importlib.util.find_spec("no_such_package"))
"""
    assert output(code).splitlines() == ["mxnet True True", "False None"]


def test_mxnet_can_be_reloaded():
    array_of = mx.nd.NDArray
    assert importlib.reload(mx) is mx
    assert mx.nd.NDArray is array_of
    assert np.asarray(mx.nd.ones((2,))).tolist() == [1, 1]


def test_preparing_again_changes_nothing():
    before = list(sys.meta_path)
    fixes.prepare()
    assert sys.meta_path == before


# What is mended


def test_arrays_become_numpy_arrays():
    values = np.array([[1.5, 2.5], [3.5, 0]], "float32")
    for array in (mx.nd.array(values), mx.np.array(values), mx.nd.array(values).tostype("csr")):
        found = np.asarray(array)
        assert type(found) is np.ndarray
        assert found.dtype == np.float32
        assert np.array_equal(found, values)
    assert np.array([mx.nd.array(values)] * 2).shape == (2, 2, 2)
    assert np.asarray(mx.nd.array(3.0)).shape == ()


def test_the_dtype_asked_for_is_given():
    array = mx.nd.array([1.5, 2.5], dtype="float16")
    assert np.asarray(array).dtype == np.float16
    found = np.asarray(array, dtype="int64")
    assert found.dtype == np.int64
    assert found.tolist() == [1, 2]


def test_a_numpy_array_is_always_a_copy():
    array = mx.nd.ones((2,))
    np.asarray(array)[:] = 5
    assert array.asnumpy().tolist() == [1, 1]
    assert array.__array__(copy=True).tolist() == [1, 1]
    with pytest.raises(ValueError, match="only by a copy"):
        array.__array__(copy=False)


def test_scipy_matrices_are_still_taken():
    scipy_sparse = pytest.importorskip("scipy.sparse")
    values = np.array([[0, 1.0], [2.0, 0]], "float32")
    array = mx.nd.sparse.array(scipy_sparse.csr_matrix(values))
    assert array.stype == "csr"
    assert array.asnumpy().tolist() == values.tolist()
    assert array.asscipy().toarray().tolist() == values.tolist()


def test_exit_waits_for_pending_custom_operators():
    code = """
import time
import gluon_resnetv2
import mxnet as mx

class Slow(mx.operator.CustomOp):
    def forward(self, is_train, req, in_data, out_data, aux):
        time.sleep(0.05)
        self.assign(out_data[0], req[0], in_data[0] + 1)

@mx.operator.register("slow")
class SlowProp(mx.operator.CustomOpProp):
    def create_operator(self, context, shapes, dtypes):
        return Slow()

array = mx.nd.zeros((1,))
for _ in range(10):
    array = mx.nd.Custom(array, op_type="slow")
print("end")
"""
    assert output(code) == "end"  # or the time-out of `python`


BLOCKED_DISTUTILS = """
import sys

class Blocked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "distutils":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked)
from gluon_resnetv2 import fixes, machine
fixes._provide_distutils()
"""


def test_distutils_has_a_stand_in_where_there_is_none():
    code = """
import importlib.util
from distutils.version import LooseVersion, StrictVersion
print(LooseVersion("1.10.0") > LooseVersion("1.9.1"), LooseVersion("1.9.1") < "1.10.0")
print(LooseVersion("2.13.0+cpu") >= LooseVersion("2.0.0"), StrictVersion("1.26.4") == "1.26.4")
print(importlib.util.find_spec("distutils").name)
"""
    assert output(BLOCKED_DISTUTILS + code).split() == ["True"] * 4 + ["distutils"]


# AMX, which few processors have: the processor and Linux are simulated


@pytest.fixture
def processor(monkeypatch):
    """Gives this machine the instruction sets and the answer of Linux that a test asks for."""

    def simulate(flags, granted):
        monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset(flags))
        monkeypatch.setattr(machine, "tiles_granted", lambda: granted)

    monkeypatch.setattr(fixes, "amx", fixes.amx)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    return simulate


WITH_AVX512 = ["fpu", "sse2", "avx2", "avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni"]
SAPPHIRE_RAPIDS = [*WITH_AVX512, "avx_vnni", "avx512_bf16", "amx_bf16", "amx_tile", "amx_int8"]


@pytest.mark.parametrize(
    ("flags", "granted", "expected"),
    [
        ([], True, "not on this processor"),
        (WITH_AVX512, True, "not on this processor"),
        (SAPPHIRE_RAPIDS[:-1], True, "not on this processor"),
        (SAPPHIRE_RAPIDS, False, "refused by Linux"),
    ],
)
def test_without_amx_onednn_is_left_alone(processor, flags, granted, expected):
    processor(flags, granted)
    fixes._enable_amx(None)  # must not use MXNet
    assert fixes.amx == expected
    assert "DNNL_MAX_CPU_ISA" not in os.environ


def test_the_instruction_sets_that_the_user_chose_stay(processor, monkeypatch):
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    processor(SAPPHIRE_RAPIDS, True)
    fixes._enable_amx(None)
    assert fixes.amx == "left to DNNL_MAX_CPU_ISA=AVX2"
    assert os.environ["DNNL_MAX_CPU_ISA"] == "AVX2"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86-64")
def test_onednn_takes_the_instruction_sets_it_is_told_and_children_are_not_told():
    code = """
import os
from gluon_resnetv2 import fixes, machine
machine.cpu_flags = lambda: fixes._AMX_FLAGS
machine.tiles_granted = lambda: True
fixes._AMX_ISA = "SSE41"  # lower than what any processor of today has
import mxnet
assert fixes.amx == "on" and "DNNL_MAX_CPU_ISA" not in os.environ
"""
    header = [line for line in output(code, DNNL_VERBOSE="1").splitlines() if "cpu,isa:" in line]
    assert header == ["dnnl_verbose,info,cpu,isa:Intel SSE4.1"]


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="a system call of Linux"
)
def test_linux_grants_the_tiles_where_it_supports_them():
    supported = ctypes.c_uint64()
    arch_get_xcomp_supp = 0x1021
    ctypes.CDLL(None).syscall(158, arch_get_xcomp_supp, ctypes.byref(supported))
    granted = output("from gluon_resnetv2 import fixes, machine; print(machine.tiles_granted())")
    assert granted == str(bool(supported.value >> 18 & 1))


def test_mxnet_imported_before_us_is_mended_and_what_is_lost_is_said(processor, monkeypatch):
    processor(SAPPHIRE_RAPIDS, True)
    monkeypatch.setattr(fixes, "_AMX_ISA", "ALL")
    monkeypatch.setattr(machine, "hyper_threads", lambda: True)
    monkeypatch.setattr(fixes, "too_late", [])
    finders = (fixes._Finder, fixes._LastResort)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if f not in finders])
    monkeypatch.delattr(mx.nd.NDArray, "__array__")
    with pytest.warns(RuntimeWarning, match="AMX may stay off: MXNet was imported before") as told:
        fixes.prepare()
    fixes.prepare()
    assert fixes.too_late == [str(told[0].message)]
    assert len(told) == 1
    assert np.asarray(mx.nd.ones((2,))).tolist() == [1, 1]


@pytest.mark.skipif(
    sys.version_info >= (3, 12) or GPU_WHEEL in machine.wheels(),
    reason="MXNet is not imported without us where it needs distutils or CUDA's libraries",
)
def test_mxnet_imported_before_us_is_mended_without_a_word_if_nothing_is_lost():
    code = """
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import numpy as np
    np.bool = bool
    import mxnet as mx
from gluon_resnetv2 import fixes, machine
print(np.asarray(mx.nd.array([1, 2])), fixes.too_late)
"""
    assert output(code, DNNL_MAX_CPU_ISA="ALL", OMP_NUM_THREADS="1") == "[1. 2.] []"


# Threads


@pytest.mark.parametrize(
    ("shared", "setting", "expected"),
    [
        (False, {}, {"MXNET_OMP_MAX_THREADS": "8"}),
        (True, {}, {}),
        (False, {"OMP_NUM_THREADS": "3"}, {"OMP_NUM_THREADS": "3"}),
        (False, {"MXNET_OMP_MAX_THREADS": "3"}, {"MXNET_OMP_MAX_THREADS": "3"}),
    ],
)
def test_every_core_is_used_unless_told_otherwise(monkeypatch, shared, setting, expected):
    monkeypatch.setattr(os, "environ", dict(setting))
    monkeypatch.setattr(machine, "cpus", lambda: 8)
    monkeypatch.setattr(machine, "hyper_threads", lambda: shared)
    assert fixes._use_every_core() == (setting != expected)
    assert not fixes._use_every_core()
    assert os.environ == expected


@pytest.mark.skipif(
    sys.platform != "linux" or machine.cpus() == 1, reason="needs Linux and two CPUs"
)
def test_mxnet_takes_the_threads_it_is_told():
    code = """
import os
for name in ("OMP_NUM_THREADS", "MXNET_OMP_MAX_THREADS"):
    os.environ.pop(name, None)
from gluon_resnetv2 import fixes, machine
machine.hyper_threads = lambda: False
import mxnet
print(fixes.threads)
"""
    assert output(code) == str(machine.cpus())


TOLD = """
import os
import gluon_resnetv2, mxnet
print([name for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ])
"""


@pytest.mark.parametrize(
    ("given", "policy", "rounds", "left"),
    [
        ({}, "ACTIVE", "300000", []),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "PASSIVE", "0", ["OMP_WAIT_POLICY"]),
    ],
    ids=["default", "passive"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="needs libgomp")
def test_openmp_is_told_how_threads_wait_and_nobody_else(given, policy, rounds, left):
    """libgomp prints what it has read."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": str(ROOT), **given}
    done = subprocess.run(
        [sys.executable, "-c", TOLD], env=environment, capture_output=True, text=True, check=True
    )
    said = dict(re.findall(r"(\w+) = '(\w*)'", done.stderr))
    assert (said["OMP_WAIT_POLICY"], said["GOMP_SPINCOUNT"]) == (policy, rounds)
    assert done.stdout == f"{left}\n"


@pytest.mark.skipif(
    sys.platform != "linux" or machine.cpus() == 1, reason="needs Linux and two CPUs"
)
def test_mxnets_engine_alone_has_a_team_of_threads():
    """Of a convolution's output the caller makes NCHW itself: it would start threads for that."""
    code = """
import os
import gluon_resnetv2, mxnet as mx
images, weights = mx.nd.ones((8, 64, 32, 32)), mx.nd.ones((64, 64, 3, 3))
for _ in range(2):
    found = mx.nd.Convolution(images, weights, kernel=(3, 3), num_filter=64, no_bias=True)
    found.wait_to_read()
    before = len(os.listdir("/proc/self/task"))
    found.asnumpy()
    print(len(os.listdir("/proc/self/task")) - before)
"""
    assert output(code, OMP_NUM_THREADS="2").split() == ["0", "0"]


# What cannot be loaded


def installed(folder: Path, *packages: str) -> None:
    """Makes pip's records of `packages`, and nothing of the packages themselves."""
    for package in packages:
        record = folder / f"{package.replace('-', '_')}-1.9.1.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.9.1\n"
        )


BARE = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]; "


def test_without_mxnet_the_way_out_is_named():
    code = BARE + "import gluon_resnetv2, mxnet"
    assert last_line(code) == (
        "gluon_resnetv2.machine.NotInstalled: MXNet is not installed: "
        f"{install('cpu')}, with cu112 for cpu where there is an NVIDIA GPU"
    )
    code = BARE + (
        "import gluon_resnetv2\n"
        "try: import mxnet\n"
        "except ModuleNotFoundError as error: print(error.name)"
    )
    assert output(code) == "mxnet"


def test_of_an_mxnet_without_files_the_record_must_go_first(tmp_path):
    installed(tmp_path, "mxnet")
    line = last_line(BARE + "import gluon_resnetv2, mxnet", path=tmp_path)
    assert f"mxnet has lost its files: {uninstall('mxnet')}, then {install('cpu')}" in line


def test_two_wheels_over_each_other_are_refused(tmp_path):
    installed(tmp_path, {CPU_WHEEL: GPU_WHEEL, GPU_WHEEL: CPU_WHEEL}[machine.wheels()[0]])
    line = last_line("import gluon_resnetv2, mxnet", path=tmp_path)
    assert "mxnet and mxnet-cu112 are installed over each other: " in line


@pytest.mark.parametrize(
    ("where", "what", "value", "expected"),
    [
        ("sys", "version_info", (3, 15, 0), "runs on Python 3.10 to 3.14, and this is"),
        ("sys", "version_info", (3, 9, 18), "runs on Python 3.10 to 3.14, and this is"),
        ("sys", "platform", "win32", "no wheel that loads on .*: use Linux on x86-64; what `exp"),
        ("platform", "machine", lambda: "aarch64", "loads on Linux with an aarch64 processor: use"),
        ("platform", "machine", lambda: "arm64", "with an arm64 processor: use Linux on x86-64"),
    ],
)
def test_a_python_or_machine_that_mxnet_does_not_know_is_refused(
    monkeypatch, where, what, value, expected
):
    monkeypatch.setattr(sys.modules[where], what, value)
    with pytest.raises(CannotLoad, match=expected) as caught:
        machine.require()
    assert "\n" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setattr(machine, "wheels", lambda: [GPU_WHEEL])
    monkeypatch.setattr(machine, "driver", lambda: None)
    with pytest.raises(CannotLoad, match=r"needs NVIDIA's driver, and libcuda\.so\.1 is not found"):
        machine.require()


def test_what_cannot_be_loaded_is_a_mistake_of_the_user_and_an_import_error():
    assert issubclass(CannotLoad, UserError)
    assert issubclass(CannotLoad, ImportError)
    assert str(machine.NotInstalled("why", name="mxnet")) == "why"


FAKE_MXNET = "import ctypes, os; ctypes.CDLL(os.path.dirname(__file__) + '/libmxnet.so')\n"
WITH_FAKE_MXNET = """
from gluon_resnetv2 import fixes, machine
machine.wheels = lambda: [machine.GPU_WHEEL]
machine.CUDA_LIBRARIES = {"fake": "libfake.so.1"}
machine.driver = lambda: "there"
fixes._after = lambda mxnet: None
import mxnet
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a dynamic linker like Linux's")
def test_libraries_of_nvidias_wheels_are_found_by_the_linker(tmp_path):
    library = tmp_path / "nvidia/fake/lib/libfake.so.1"
    (tmp_path / "mxnet").mkdir()
    library.parent.mkdir(parents=True)
    (tmp_path / "nvidia/__init__.py").write_text("")
    source = tmp_path / "empty.c"
    source.write_text("")
    fake_driver.shared(library, f"-Wl,-soname,{library.name}", str(source))
    needs_it = ("-Wl,--no-as-needed", str(library))
    fake_driver.shared(tmp_path / "mxnet/libmxnet.so", str(source), *needs_it)
    (tmp_path / "mxnet/__init__.py").write_text(FAKE_MXNET)

    assert output(WITH_FAKE_MXNET + "print('loaded')", path=tmp_path) == "loaded"

    library.unlink()
    line = last_line(WITH_FAKE_MXNET, path=tmp_path)
    assert "CannotLoad: MXNet's library does not load (libfake.so.1: cannot open" in line
    assert line.endswith(f"{install('cu112')} again")
    system = 'machine.SYSTEM_LIBRARIES = {"libfake.so.1": ("libfake1", "libfake")}\nimport mxnet'
    line = last_line(WITH_FAKE_MXNET.replace("import mxnet", system), path=tmp_path)
    assert line.endswith(
        "cannot open shared object file: No such file or directory): "
        "apt install libfake1, or dnf install libfake"
    )


# NumPy 2


@pytest.mark.skipif(np.__version__ < "2", reason="NumPy 1 has the names, and writes plain numbers")
def test_numpy_2_is_given_what_mxnet_asks_of_it():
    assert (np.PINF, np.NINF, np.product([2, 3])) == (np.inf, -np.inf, 6)
    assert np.in1d([1, 2], [2]).tolist() == [False, True]
    assert np.msort(np.array([[2, 1], [1, 3]])).tolist() == [[1, 1], [2, 3]]
    with pytest.raises(RuntimeError, match="are in numpy_financial"):
        np.rate(1, 2, 3, 4)
    shape = tuple(np.array([1, 3, 2, 2]))
    assert mx.sym.var("x", shape=shape).infer_shape()[1] == [(1, 3, 2, 2)]
    pooled = mx.nd.Pooling(mx.nd.ones(shape), kernel=shape[2:], pool_type="avg")
    assert pooled.shape == (1, 3, 1, 1)
    packed = mx.recordio.pack(mx.recordio.IRHeader(0, [1.0, 2.0], 7, 0), b"image")
    header, image = mx.recordio.unpack(packed)
    assert (header.label.tolist(), header.id, image) == ([1.0, 2.0], 7, b"image")


# GPUs


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    return fake_driver.build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def gpu_machine(driver, monkeypatch):
    """A machine with the GPU wheel and the fake driver, which shows what a test asks for."""

    def simulate(**settings):
        for name, value in settings.items():
            monkeypatch.setenv(f"FAKE_{name}", value)

    monkeypatch.setattr(machine, "wheels", lambda: [GPU_WHEEL])
    monkeypatch.setattr(machine, "driver", lambda: ctypes.CDLL(str(driver)))
    return simulate


@pytest.mark.parametrize("capability", ["5.0", "6.1", "7.5", "8.6", "8.9"])
def test_gpus_that_the_wheel_has_kernels_for_pass(gpu_machine, capability):
    gpu_machine(GPUS="2", CAPABILITY=capability)
    machine.check_gpus([1, 0])
    assert [gpu.name for gpu in machine.gpus()] == ["Fake GPU 0", "Fake GPU 1"]


@pytest.mark.parametrize(
    ("settings", "ids", "expected"),
    [
        ({}, [0], "there is no GPU 0: NVIDIA's driver shows none"),
        ({"GPUS": "2"}, [0, 2], "there is no GPU 2: NVIDIA's driver shows 2, numbered from 0"),
        ({"GPUS": "2"}, [-1], "there is no GPU -1"),
        ({"GPUS": "1", "CAPABILITY": "9.0"}, [0], "compute capability 9.0, and mxnet-cu112 1.9.1"),
        ({"GPUS": "1", "CAPABILITY": "12.0"}, [0], "has kernels for 5.0 to 8.9 only"),
        ({"GPUS": "1", "CAPABILITY": "3.7"}, [0], "compute capability 3.7"),
        ({"GPUS": "1", "CUDA": "10020"}, [0], "driver ends at CUDA 10.2, and MXNet needs 11.0"),
        ({"ERROR": "803"}, [0], r"driver does not start \(cuInit answers 803\)"),
    ],
)
def test_gpus_that_cannot_be_used_are_refused(gpu_machine, settings, ids, expected):
    gpu_machine(**settings)
    with pytest.raises(UserError, match=expected) as caught:
        machine.check_gpus(ids)
    assert "\n" not in str(caught.value)


def test_the_cpu_wheel_uses_no_gpu(monkeypatch):
    monkeypatch.setattr(machine, "wheels", lambda: [CPU_WHEEL])
    with pytest.raises(UserError, match="GPU 3 cannot be used: the MXNet installed is the CPU"):
        machine.check_gpus([3])
    machine.check_gpus([])


def test_gpus_without_a_driver_are_refused(monkeypatch):
    monkeypatch.setattr(machine, "wheels", lambda: [GPU_WHEEL])
    monkeypatch.setattr(machine, "driver", lambda: None)
    with pytest.raises(UserError, match=r"NVIDIA's driver is not installed: libcuda\.so\.1"):
        machine.check_gpus([0])


def test_the_driver_is_found_where_the_linker_finds_it(driver):
    code = "from gluon_resnetv2 import fixes, machine; print(machine.gpus())"
    found = output(code, LD_LIBRARY_PATH=str(driver.parent), FAKE_GPUS="1")
    assert found == "[Gpu(name='Fake GPU 0', capability=(8, 6))]"


@needs_gpu_wheel
def test_the_gpu_wheel_computes_on_the_cpu_without_a_gpu(driver):
    code = """
from gluon_resnetv2 import fixes, machine
import mxnet as mx
one = mx.nd.ones((1, 1, 2, 2))
print(mx.context.num_gpus(), (one + one).sum().asscalar())
machine.check_gpus([0])
"""
    done = python(code, LD_LIBRARY_PATH=str(driver.parent))
    assert done.stdout.split() == ["0", "8.0"]
    assert done.stderr.splitlines()[-1].endswith("there is no GPU 0: NVIDIA's driver shows none")


@needs_gpu_wheel
@pytest.mark.skipif(
    Path("/proc/driver/nvidia/version").exists(), reason="NVIDIA's driver is installed"
)
def test_the_gpu_wheel_without_a_driver_says_so():
    line = last_line("import gluon_resnetv2, mxnet", LD_LIBRARY_PATH="")
    assert "mxnet-cu112 needs NVIDIA's driver, and libcuda.so.1 is not found" in line
