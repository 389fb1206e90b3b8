"""Damages files of every kind that strangers may have written, and sees what reading them does.

    python -m tests.fuzz_files FOLDER [--count 100] [--seed 0]

reads `count` mutants of each file in FOLDER, and prints what became of each, as JSON: {"mutant",
"outcome", "growth"}. "outcome" is "read", "refused: ..." or the name of what was raised else;
"growth" is by how many bytes the process grew at most. A mutant that takes SECONDS ends the
process, as the one that was printed last.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

from tests.mutations import ROOT, _damage, _memory

SECONDS = 10
MOST = 1 << 30  # bytes that reading may take
HOSTILE = (
    *(None, True, -1, 0, 1, 2**31, 2**40, 2**62, 10**17, 0.5, 1e300, "", "x" * 300, "../x", "\0"),
    *([], {}, [[]], ["x"] * 1000, {"x": 1}, [0] * 1000, "\ud800", "preact8", "resnet20"),
)


def outcomes(folder: Path, count: int, seed: int = 0) -> list[dict]:
    """What became of each mutant of each file in a folder, in one process of its own.

    Raises:
        AssertionError: it ended before the last, by a crash, by hanging, or for want of memory.
    """
    command = [sys.executable, "-m", "tests.fuzz_files", str(folder)]
    done = subprocess.run(
        [*command, "--count", str(count), "--seed", str(seed)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = [line for line in lines if "outcome" in line]
    assert done.returncode == 0, (
        f"ended with {done.returncode} in {lines[-1:]}: {done.stderr[-999:]}"
    )
    assert len(found) == count * len(list(folder.iterdir()))
    return found


def mutant(rng: random.Random, name: str, content: bytes) -> bytes:
    """A file's content, damaged anywhere, in a member of an archive, or in a value of JSON."""
    if name == "manifest.json" and rng.random() < 0.8:
        return _other_json(rng, content)
    if content.startswith(b"PK") and rng.random() < 0.6:
        return _other_member(rng, content)
    new = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if new:
            _damage(rng, new)
    return bytes(new)


def _other_member(rng, content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice([name for name in members if members[name]])
    changed = bytearray(members[name])
    _damage(rng, changed)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for member, data in {**members, name: bytes(changed)}.items():
            archive.writestr(member, data)
    return file.getvalue()


def _other_json(rng, content):
    """One value replaced, or lost, and perhaps one more; the sum of itself is right, or gone."""
    from gluon_resnetv2.formats.manifest import MANIFEST, own_sum

    manifest = json.loads(content)
    for _ in range(rng.choice((1, 1, 2))):
        parent, key = None, None
        value = manifest
        while isinstance(value, (dict, list)) and value and (parent is None or rng.random() < 0.8):
            parent = value
            key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
            value = parent[key]
        if rng.random() < 0.2:
            del parent[key]
        else:
            parent[key] = rng.choice(HOSTILE)
    if isinstance(sums := manifest.get("sha256"), dict):
        sums.pop(MANIFEST, None)
        if rng.random() < 0.5:
            sums[MANIFEST] = own_sum(manifest)
    return json.dumps(manifest).encode()


def _reads(name: str, content: bytes, folder: Path) -> list[bytes]:
    """What reading a file of this name gives: an export's manifest, weights, or an image."""
    from gluon_resnetv2.formats import weights
    from gluon_resnetv2.formats.artifact import load
    from gluon_resnetv2.pixels import ENDINGS, decode

    path = folder / name
    if path.suffix in sum(ENDINGS.values(), ()):
        return [decode(content).tobytes()]
    path.write_bytes(content)
    if name == "manifest.json":
        artifact = load(folder)
        artifact.read()
        return [repr(artifact.manifest).encode()]
    arrays = weights.read(path)
    return [name.encode() + array.tobytes() for name, array in sorted(arrays.items())]


def _main(options) -> None:
    from gluon_resnetv2.errors import UserError  # before MXNet, which it prepares
    from gluon_resnetv2.pixels import NoImage

    warnings.simplefilter("ignore")
    scratch = Path(tempfile.mkdtemp())
    export = Path(os.environ.get("EXPORT", scratch))  # beside the manifest
    if export != scratch:
        shutil.copytree(export, scratch, dirs_exist_ok=True)
    for file in sorted(options.folder.iterdir()):
        content = file.read_bytes()
        honest = _reads(file.name, content, scratch)  # imports what is lazily imported, too
        most = _memory("VmSize") + 2 * MOST
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        for number in range(options.count):
            changed = mutant(
                random.Random(f"{options.seed} {file.name} {number}"), file.name, content
            )
            print(json.dumps({"mutant": f"{file.name} {number}"}), flush=True)
            Path("/proc/self/clear_refs").write_text("5")  # forgets the highest size so far
            before = _memory("VmRSS")
            signal.alarm(SECONDS)
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    _reads(file.name, changed, scratch)
                outcome = "read"
            except (UserError, NoImage) as error:
                outcome = f"refused: {error}"
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
            signal.alarm(0)
            line = {"mutant": f"{file.name} {number}", "outcome": ascii(outcome[:500])[1:-1]}
            line.update(growth=_memory("VmHWM") - before, lines=outcome.count("\n") + 1)
            print(json.dumps(line), flush=True)
            if number % 10 == 9:
                assert _reads(file.name, content, scratch) == honest
    shutil.rmtree(scratch)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    _main(parser.parse_args())
