"""Commands that messages name can be pasted into a shell as they are."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import sys

import pytest

from gluon_resnetv2.errors import install, python
from tests.test_layout import MODULES, PACKAGE


def test_a_command_line_starts_with_the_python_that_runs():
    words = ("-m", "gluon_resnetv2", "predict", "a run", "it's.png")
    assert shlex.split(python(*words)) == [sys.executable, *words]


def test_extras_are_installed_from_the_checkout_or_else_by_name(tmp_path, monkeypatch):
    pip = [sys.executable, "-m", "pip", "install"]
    assert shlex.split(install("onnx")) == [*pip, f"{PACKAGE.parent}[onnx]"]
    monkeypatch.setattr("gluon_resnetv2.errors.__file__", str(tmp_path / "a" / "b" / "errors.py"))
    assert shlex.split(install("onnx")) == [*pip, "gluon_resnetv2[onnx]"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_hints_are_in_that_form_and_name_extras_that_exist(path):
    text = path.read_text(encoding="utf-8")
    assert "pip install" not in text
    extras = importlib.metadata.metadata("gluon_resnetv2").get_all("Provides-Extra")
    assert set(re.findall(r"\binstall\(['\"](\w+)", text)) <= set(extras)
