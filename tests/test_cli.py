"""What all commands share: one line for a mistake, whatever the terminal can show."""

from __future__ import annotations

import io
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import gluon_resnetv2
from gluon_resnetv2 import cli, commands
from gluon_resnetv2.commands import doctor
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports import verify
from gluon_resnetv2.profiling import main as profiling
from gluon_resnetv2.study import estimate
from gluon_resnetv2.study.runner import Slot

NAME = "\u65e5\xe9" + b"\xff".decode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"\\u65e5\\xe9\\udcff\n"),
        ("latin-1", b"\\u65e5\xe9\\udcff\n"),
        ("utf-8", b"\xe6\x97\xa5\xc3\xa9\\udcff\n"),
    ],
)
def test_what_standard_output_has_no_letters_for_is_escaped(monkeypatch, encoding, shown):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    with pytest.raises(SystemExit) as exited:
        cli.run(lambda: print(NAME))
    assert not exited.value.code
    assert written.getvalue() == shown


def test_standard_output_may_be_no_file(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(SystemExit) as exited:
        cli.run(lambda: print(NAME))
    assert not exited.value.code
    assert sys.stdout.getvalue() == f"{NAME}\n"


def test_a_name_that_mxnet_cannot_take_is_told_in_one_line(capsys, tmp_path):
    import mxnet as mx

    with pytest.raises(SystemExit) as exited:
        cli.run(lambda: mx.nd.save(str(tmp_path / NAME), []))
    assert exited.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: '/")
    assert line.endswith("\\udcff' is no text in UTF-8, which MXNet needs of names; choose another")


@pytest.fixture
def garbled(monkeypatch, tmp_path):
    """Every process of ours ends with a message in another encoding than is expected."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf 'no caf\\351' >&2\nexit 1\n")
    python.chmod(stat.S_IRWXU)
    monkeypatch.setattr(sys, "executable", str(python))


def test_what_a_process_of_ours_says_in_another_encoding_is_read(garbled, tmp_path):
    stop = threading.Event()
    stop.set()  # and it starts no further one
    told = "no caf\\xe9"
    assert doctor._ask_mxnet() == {"error": told}
    with pytest.raises(UserError, match=r"failed: no caf\\xe9$"):
        profiling.run({})
    with pytest.raises(UserError, match=r"machine: no caf\\xe9$"):
        estimate._measured(False, "auto", Slot(None, 1))
    (((_, failure),),) = verify._run(
        [("block", None), ("module", None)], tmp_path, [{}], processes := [], stop
    ).values()
    assert failure == f"the process ended with status 1: {told}"
    assert len(processes) == 1


def test_every_verb_is_a_module_whose_help_needs_no_mxnet():
    folder = Path(commands.__file__).parent
    assert set(commands.VERBS) == {path.stem for path in folder.glob("[a-z]*.py")}
    code = (
        "import sys; from gluon_resnetv2 import commands\n"
        "for verb in commands.VERBS: commands.parser([verb])\n"
        "print(*{'mxnet', 'matplotlib', 'starlette'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder.parents[1], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


@pytest.mark.parametrize("verb", commands.VERBS)
def test_help_says_what_a_verb_does(verb, capsys):
    with pytest.raises(SystemExit):
        commands.parser([verb]).parse_args([verb, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert " ".join(commands.VERBS[verb].split()) in printed
    assert not re.search(r"default: (\[\]|\(\)|None|False)", printed)


@pytest.mark.parametrize(
    ("path", "program"),
    [
        ("/usr/bin/resnetv2", "resnetv2"),
        ("/lib/gluon_resnetv2/__main__.py", "python -m gluon_resnetv2"),
    ],
)
def test_usage_names_the_program_as_it_was_called(monkeypatch, capsys, path, program):
    monkeypatch.setattr(sys, "argv", [path])
    with pytest.raises(SystemExit):
        commands.parser(["pack"]).parse_args(["pack", "--help"])
    assert capsys.readouterr().out.startswith(f"usage: {program} pack ")


def test_a_long_option_stays_whole_in_help(capsys):
    with pytest.raises(SystemExit):
        commands.parser(["train"]).parse_args(["train", "--help"])
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.rstrip().endswith("-")] == []
    headings = [line for line in printed.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == ["options:", "network:", "data:", "optimisation:", "machine:", "run:"]


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as exited:
        commands.parser(["--version"]).parse_args(["--version"])
    assert (exited.value.code, capsys.readouterr().out) == (0, f"{gluon_resnetv2.__version__}\n")
