"""The report: what it says of this machine, and of machines unlike it."""

from __future__ import annotations

import ctypes
import platform
import sys

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2 import fixes, machine
from gluon_resnetv2.commands import doctor
from gluon_resnetv2.commands.doctor import ABSENT, ACTIVE, BROKEN, HANDLED, Row
from tests import fake_driver


@pytest.fixture(scope="module")
def here() -> list[Row]:
    return doctor.report()


def text(rows, name: str) -> str:
    (row,) = (row for row in rows if row.name == name)
    return row.text


def states(rows) -> dict[str, str]:
    return {row.name: row.state for row in rows if row.section.startswith("Hazards")}


def hazards(**found) -> dict[str, str]:
    return states(doctor._hazards(found))


def test_versions_are_those_in_use(here):
    assert text(here, "Python").startswith(platform.python_version())
    assert text(here, "MXNet") == f"{mx.__version__}, wheel: {machine.wheels()[0]}"
    assert text(here, "numpy") == np.__version__
    enabled = {feature.name for feature in mx.runtime.feature_list() if feature.enabled}
    assert set(text(here, "  built with").split(", ")) == enabled
    assert text(here, "  oneDNN") == "2.4.4"


def test_the_processor_is_the_one_onednn_sees(here):
    assert text(here, "oneDNN uses").startswith("Intel ")
    assert int(text(here, "OpenMP threads").split()[0]) >= 1


def test_mended_hazards_are_handled_and_inherent_ones_active(here):
    found = states(here)
    assert found["numpy.asarray(NDArray)"] == HANDLED
    assert found["exit with pending work"] == HANDLED
    assert found["Trainer.load_states"] == ACTIVE
    order = [ACTIVE, HANDLED, ABSENT]
    assert list(found.values()) == sorted(found.values(), key=order.index)


def test_main_prints_the_report_and_returns_0_where_mxnet_works(here, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "report", lambda: here)
    assert doctor.run(None) == 0
    printed = capsys.readouterr().out
    sections = [block.splitlines()[0] for block in printed.split("\n\n")]
    assert sections == ["Versions", "Processor", "GPUs", "Hazards of MXNet 1.9.1"]
    assert max(map(len, printed.splitlines())) <= 100


def test_columns_are_aligned_and_long_texts_wrapped():
    rows = [
        Row("One", "a", "x " * 60 + "end", HANDLED),
        Row("One", "longer", "short", ABSENT),
        Row("Two", "b", "no state"),
    ]
    assert doctor.render(rows).splitlines() == [
        "One",
        "  a       handled  " + " ".join("x" * 41),
        "                   " + " ".join("x" * 19) + " end",
        "  longer  n/a      short",
        "",
        "Two",
        "  b  no state",
    ]


@pytest.mark.parametrize(
    ("mxnet", "expected"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "the process, by signal 4"),
        ("raise RuntimeError('Cannot find\\nthe MXNet library')", "the MXNet library"),
        ("raise OSError('libfoo.so: missing')", "does not load (libfoo.so: missing)"),
        ("import time; time.sleep(60)", "does not end within 3 seconds"),
    ],
)
def test_an_mxnet_that_cannot_be_imported_is_told_of_with_all_the_rest(
    tmp_path, monkeypatch, capsys, mxnet, expected
):
    (tmp_path / "mxnet").mkdir()
    (tmp_path / "mxnet/__init__.py").write_text(mxnet)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "PATIENCE", 3 if "sleep" in mxnet else 60)
    assert doctor.run(None) == 1
    printed = capsys.readouterr().out
    (line,) = (line for line in printed.splitlines() if line.startswith("  MXNet    broken"))
    assert expected in line
    assert np.__version__ in printed
    assert "Hazards of MXNet 1.9.1" in printed


@pytest.fixture
def gpu_machine(tmp_path, monkeypatch):
    library = fake_driver.build(tmp_path)
    monkeypatch.setattr(machine, "wheels", lambda: [machine.GPU_WHEEL])
    monkeypatch.setattr(machine, "driver", lambda: ctypes.CDLL(str(library)))


@pytest.mark.parametrize(("capability", "kernels"), [("8.6", "kernels"), ("9.0", "no kernels")])
@pytest.mark.usefixtures("gpu_machine")
def test_each_gpu_is_named_with_what_the_wheel_has_for_it(monkeypatch, capability, kernels):
    monkeypatch.setenv("FAKE_GPUS", "2")
    monkeypatch.setenv("FAKE_CAPABILITY", capability)
    rows = list(doctor._gpus())
    for index in (0, 1):
        name, told, verdict = text(rows, f"GPU {index}").split(", ")
        assert name == f"Fake GPU {index}"
        assert told == f"compute capability {capability}"
        assert verdict == f"for which mxnet-cu112 has {kernels}"


@pytest.mark.usefixtures("gpu_machine")
def test_a_driver_without_gpus_is_told_of():
    assert text(doctor._gpus(), "driver") == "installed, and shows no GPU"


def test_a_module_called_nvidia_brings_no_libraries(monkeypatch, tmp_path):
    (tmp_path / "nvidia.py").touch()
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)  # which PyTorch may have imported
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert machine.cuda_libraries() == []


def test_a_missing_driver_is_told_of(monkeypatch):
    monkeypatch.setattr(machine, "driver", lambda: None)
    assert text(doctor._gpus(), "driver").startswith("NVIDIA's driver is not installed")


def test_the_states_of_hazards_follow_the_environment(monkeypatch):
    assert hazards()["fused convolution"] == ACTIVE
    monkeypatch.setenv("MXNET_SUBGRAPH_BACKEND", "NONE")
    assert hazards()["fused convolution"] == HANDLED
    assert hazards()["backward mirroring"] == ABSENT
    monkeypatch.setenv("MXNET_BACKWARD_DO_MIRROR", "1")
    assert hazards()["backward mirroring"] == ACTIVE


@pytest.mark.parametrize(
    ("versions", "hazard", "expected"),
    [
        ({"onnx": "1.18.0"}, "ONNX export", ABSENT),
        ({"onnx": "1.19.0rc1"}, "ONNX export", HANDLED),
        ({}, "ONNX export", ABSENT),
        ({"gluoncv": "0.10.5.post0", "torch": "2.13.0+cpu"}, "GluonCV beside PyTorch 2", HANDLED),
        ({"gluoncv": "0.10.5.post0", "torch": "1.13.1"}, "GluonCV beside PyTorch 2", ABSENT),
        ({"torch": "2.13.0"}, "GluonCV beside PyTorch 2", ABSENT),
    ],
)
def test_the_states_of_hazards_follow_what_is_installed(monkeypatch, versions, hazard, expected):
    monkeypatch.setattr(doctor, "_version", versions.get)
    assert hazards()[hazard] == expected


@pytest.mark.parametrize(
    ("amx", "expected"),
    [("on", HANDLED), ("not on this processor", ABSENT), ("refused by Linux", ACTIVE)],
)
def test_the_state_of_amx_is_the_runtimes(amx, expected):
    assert hazards(amx=amx)["AMX"] == expected


@pytest.mark.parametrize(("shared", "expected"), [(True, ABSENT), (False, HANDLED)])
def test_half_of_the_cpus_is_missed_only_without_hyper_threads(monkeypatch, shared, expected):
    monkeypatch.setattr(machine, "hyper_threads", lambda: shared)
    assert hazards()["half of the CPUs"] == expected


def test_what_came_too_late_is_repeated(monkeypatch):
    monkeypatch.setattr(fixes, "too_late", ["AMX may stay off"])
    (row,) = (row for row in doctor._hazards({}) if row.name == "imported too late")
    assert (row.state, row.text) == (ACTIVE, "AMX may stay off")


def test_only_a_broken_mxnet_is_a_failure(monkeypatch, capsys):
    for state, expected in ((BROKEN, 1), (ACTIVE, 0), ("", 0)):
        monkeypatch.setattr(doctor, "report", lambda state=state: [Row("A", "b", "c", state)])
        assert doctor.run(None) == expected
    assert "b  broken  c" in capsys.readouterr().out
