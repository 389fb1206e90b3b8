"""The README, CONTRIBUTING.md and docs/: what their commands say is what the program takes.

A shell command stands in a fence of `sh`. Each of ours is read by its own parser here. A slow test
runs those that are not marked: words behind `sh` say what a command needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
for pattern in ("docs/*.md", "docs/*/README.md", "examples/*/README.md"):
    PAGES += sorted(ROOT.glob(pattern))
# Why a command is not run here: it needs a GPU, a CPU with AVX-512, several machines, what is not
# in the repository (a data set, weights, a package index, programs), or more than a minute.
MARKS = {"gpu", "avx512", "cluster", "download", "long"}
LANGUAGES = {"sh", "python"}
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = {"resnetv2": "gluon_resnetv2"}  # what stands on PATH, and the module it runs


class Block(NamedTuple):
    """A fence: where it stands, the words behind its ticks, and what is in it."""

    page: Path
    language: str
    marks: frozenset[str]
    text: str


def blocks(language: str | None = None) -> list[Block]:
    found = []
    for page in PAGES:
        for words, text in FENCE.findall(page.read_text(encoding="utf-8")):
            first, *marks = words.split() or [""]
            if not first.startswith("{") and language in (None, first):  # {}: one of MyST's
                found.append(Block(page, first, frozenset(marks), text))
    return found


def commands(text: str) -> list[list[str]]:
    """The words of each command, without comments, settings of the environment and `&`."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words:
            found.append(words[:-1] if words[-1] == "&" else words)
    return found


def python_program(words: list[str]) -> list[str] | None:
    """The words behind `python` of a command that runs a program in Python; None for others."""
    program = words[0].rpartition("/")[2]
    if program in PROGRAMS:
        return ["-m", PROGRAMS[program], *words[1:]]
    return words[1:] if program == "python" else None


def ours(words: list[str]) -> list[list[str]]:
    """Those of our programs that a command runs, as words behind `python`; not the examples."""
    found = python_program(words)
    if found is None:
        return []
    while found[:1] == ["-W"]:
        found = found[2:]
    if found[0] == "-m" and not (ROOT / found[1].replace(".", "/")).exists():
        return []
    if "launch" in found:
        launched = found.index("--") + 1
        return [found, *ours(found[launched:])]
    return [] if found[0].startswith("examples/") else [found]


# Reads commands, a list of words for each, and stops each where its parser is done.
READER = """
import argparse, json, runpy, sys
from gluon_resnetv2 import cli

class Parsed(Exception):
    pass

def stopping(parse):
    def parse_args(self, *args, **named):
        parse(self, *args, **named)
        raise Parsed
    return parse_args

for parser in (argparse.ArgumentParser, cli.Parser):
    parser.parse_args = stopping(parser.parse_args)
answers = []
for words in json.load(sys.stdin):
    by_name = words[0] == "-m"
    run, name = (runpy.run_module, words[1]) if by_name else (runpy.run_path, words[0])
    sys.argv = words[by_name:]
    sys.stderr.flush()
    try:
        run(name, run_name="__main__")
        answers.append("it parses nothing")
    except Parsed:
        answers.append("")
    except SystemExit as end:
        answers.append("" if end.code == 0 else "it is refused")
    except Exception as error:
        answers.append(repr(error))
print("\\n" + json.dumps(answers))
"""


def refused(programs: list[list[str]]) -> list[str]:
    """A line for each of these commands, words behind `python`, that its parser does not take."""
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input=json.dumps(programs),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    answers = json.loads(done.stdout.splitlines()[-1])
    return [
        f"{shlex.join(words)}: {answer}; {done.stderr}"
        for words, answer in zip(programs, answers, strict=True)
        if answer
    ]


def test_each_fence_says_what_it_holds_and_what_it_needs():
    for block in blocks():
        assert block.language in LANGUAGES, f"{block.page.name}: {block.text}"
        allowed = MARKS if block.language == "sh" else set()
        assert block.marks <= allowed, f"{block.page.name}: {block.text}"


def test_our_commands_are_what_their_parsers_take():
    wrong = [
        ["-m", "gluon_resnetv2", "serves", "RUN"],
        ["-m", "gluon_resnetv2", "export", "RUN", "--precision", "int4"],
        ["train/cifar.py", "--lear", "0.1"],
        ["-m", "benchmarks", "--slowly"],
    ]
    lines = [words for block in blocks("sh") for words in commands(block.text)]
    programs = [program for words in lines for program in ours(words)]
    assert len(programs) > 40
    told = refused(programs + wrong)
    assert [line.partition(":")[0] for line in told] == [shlex.join(words) for words in wrong], told


def test_targets_extras_and_files_that_commands_name_are_there():
    makefile, project = ((ROOT / name).read_text() for name in ("Makefile", "pyproject.toml"))
    extras = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    for block in blocks("sh"):
        for words in commands(block.text):
            if words[0] == "make":
                for target in words[1:]:
                    assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
            for text in [word for word in words if word.startswith(".[")]:
                for extra in text[2:-1].split(","):
                    assert re.search(rf"^{extra} = \[", extras, re.MULTILINE), extra
            for word in words:
                if re.match(r"(tests|examples|train|benchmarks)/", word):
                    assert (ROOT / word).exists(), word


def test_the_readme_s_packages_are_found_where_bare_systems_are_made():
    (command,) = re.findall(r"^packages=\$\((.*)\)$", (ROOT / ".ci/bare").read_text(), re.M)
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "project": str(ROOT)}, capture_output=True
    )
    assert {b"python3-venv", b"git", b"make"} < set(done.stdout.split())


def test_what_pages_name_in_the_repository_is_there():
    """Paths in backticks and links, of files that a checkout has."""
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        folders = "gluon_resnetv2|tests|docs|train|examples|benchmarks|symbols|\\.ci"
        named = re.findall(rf"`((?:{folders})/[\w./]*)`", text)
        linked = [
            os.path.relpath(page.parent / link, ROOT)
            for link in re.findall(r"\]\((?!https?:)([^)#\s]+)[^)\s]*\)", text)
        ]
        for path in [path for path in named + linked if "NAME" not in path]:
            assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_what_a_contributor_has_to_change_stands_in_the_files_named():
    """Of each step of CONTRIBUTING.md: one of its files has each name in backticks."""
    steps = re.findall(r"^\d+\. (.*?)(?=^\d+\. |^#|\Z)", PAGES[1].read_text(), re.M | re.S)
    assert len(steps) > 20
    for step in steps:
        words = re.findall(r"`([^`]*)`", step)
        files = [ROOT / word for word in words if "/" in word]
        if "NAME" not in step:
            text = "".join(path.read_text(encoding="utf-8") for path in files)
            for name in [word for word in words if re.fullmatch(r"[\w.]+", word)]:
                assert re.search(rf"\b{name.rpartition('.')[2]}\b", text), step


@pytest.mark.slow
def test_commands_that_are_not_marked_do_what_they_should(tmp_path):
    """In the order of the pages, the README's first, after a short training of its run."""
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv", "runs", "build"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    run(tmp_path, "python train/cifar.py --recipe digits --num-epochs 5")
    scripts = [
        f"python -c {shlex.quote(block.text)}" if block.language == "python" else block.text
        for block in blocks()
        if not block.marks and "examples" not in block.page.parts  # which have tests of their own
    ]
    for script in dict.fromkeys(scripts):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        run(tmp_path, script.replace("8080", str(port)))


def run(folder: Path, script: str) -> None:
    """Runs lines of a shell, and ends what they leave in the background."""
    settings = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "agg",
    }
    with (folder / "output").open("w+") as output:
        shell = subprocess.Popen(
            ["bash", "-euc", script],
            cwd=folder,
            env=settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = shell.wait(timeout=600)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
        output.seek(0)
        assert status == 0, f"{script}\n{output.read()}"
