"""The tutorial: as the notebook that its README builds, and as a script."""

from __future__ import annotations

import json
import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "examples" / "tutorial" / "identity_mappings.py"
FIGURES = 5
# What makes it quick: three units, trained for two epochs.
SMALL = {"DEPTH = 56 ": "DEPTH = 8 ", "EPOCHS = 5 ": "EPOCHS = 2 "}


@pytest.fixture
def small(tmp_path) -> Path:
    """The script with smaller constants, in a folder of its own."""
    text = SCRIPT.read_text(encoding="utf-8")
    for constant, smaller in SMALL.items():
        assert text.count(constant) == 1
        text = text.replace(constant, smaller)
    path = tmp_path / SCRIPT.name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path):
    """Runs a command of this Python's environment; gives what it prints."""

    def run(*command) -> str:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        # A screen would get windows, and a backend of the user's would get the notebook's figures.
        for name in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND"):
            env.pop(name, None)
        # Nothing reads the user's settings and caches, nor writes beside them.
        for name in (
            *("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"),
            "MPLCONFIGDIR",
        ):
            env[name] = str(tmp_path / name)
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


def outputs(notebook: dict) -> list[dict]:
    """What the cells of a notebook left, all of which have to have run."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    return [output for cell in cells for output in cell["outputs"]]


@pytest.mark.slow  # half a minute
def test_the_notebook_runs_and_shows_its_figures(small, run, tmp_path):
    notebook = tmp_path / "tutorial.ipynb"
    run("-c", "import matplotlib.font_manager")  # which says so where finding fonts takes long
    run("-m", "jupytext", "--to", "notebook", "--output", notebook, small)
    run("-m", "jupyter", "execute", "--inplace", notebook)
    left = outputs(json.loads(notebook.read_text(encoding="utf-8")))
    assert [output for output in left if output["output_type"] == "error"] == []
    assert sum("image/png" in output.get("data", ()) for output in left) == FIGURES
    said = [(output["name"], "".join(output["text"])) for output in left if "name" in output]
    assert [text for name, text in said if name != "stdout"] == []  # no warnings
    printed = "".join(text for _, text in said)
    off = [
        float(number)
        for number in re.findall(r"(?:Eq\. \(\d\)|library's).*: +(\S+)$", printed, re.M)
    ]
    assert len(off) == 6
    assert off.pop(1) > 0.1  # Eq. (4) where f is ReLU
    assert max(off) < 1e-12
    assert len(re.findall(r"epoch 2: loss", printed)) == 3


def test_the_script_s_figures_say_what_they_show(small, monkeypatch):
    """In this process, where every warning is an error."""
    figures = []
    monkeypatch.setattr(plt, "show", lambda: figures.append(plt.gcf()))
    backend = matplotlib.get_backend()
    plt.switch_backend("agg")
    try:
        with matplotlib.rc_context():
            found = runpy.run_path(str(small), run_name="__main__")
            for figure in figures:
                figure.canvas.draw()
    finally:
        plt.close("all")
        plt.switch_backend(backend)
    assert len(figures) == FIGURES
    for figure in figures:
        assert figure.legends or figure.axes[0].get_legend()
        for axes in figure.axes:
            assert axes.get_xlabel()
            assert axes.get_ylabel()
            values = [y for line in axes.lines for y in line.get_ydata()]
            assert values
            assert all(map(math.isfinite, values))
    losses, errors = found["curves"]["identity"]
    assert losses[1] < losses[0]
    assert errors[1] < 50


@pytest.mark.slow
def test_the_whole_script_trains_as_it_says(run):
    printed = run("-W", "error", SCRIPT)
    errors = [float(error) for error in re.findall(r"epoch 5: .* test error (\S+) %", printed)]
    assert len(errors) == 3
    assert errors[0] < 5  # "are quickly learned"
    assert min(errors[1:]) > 3 * errors[0]  # "the other two learn more slowly"
