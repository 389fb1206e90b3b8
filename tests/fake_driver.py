"""Builds the stand-in for NVIDIA's driver (fake_driver.c)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".c")


def build(folder: Path) -> Path:
    """Compiles libcuda.so.1 into `folder`; skips the test where there is no C compiler."""
    library = folder / "libcuda.so.1"
    shared(library, str(SOURCE))
    return library


def shared(library: Path, *arguments: str) -> None:
    """Has gcc build a shared library."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc, which builds the stand-in for the library, is not installed")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), *arguments], check=True)
