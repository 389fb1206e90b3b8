"""Side-by-side measurements; each script is run by its path, and says how in its docstring."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor


def in_a_fresh_process(function, *args):
    """`function(*args)`, in a process that nothing was imported or computed in before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
