"""Runs the `im2rec` that comes with MXNet, in a process of its own, with its own options.

That script imports OpenCV, which it doesn't use with --pass-through and we don't require. As a
module of this package it finds MXNet prepared for today's NumPy.
"""

from __future__ import annotations

import runpy
import sys
import types
from pathlib import Path

import mxnet as mx

if __name__ == "__main__":
    sys.modules.setdefault("cv2", types.ModuleType("cv2"))
    runpy.run_path(str(Path(mx.__file__).parent / "tools" / "im2rec.py"), run_name="__main__")
