"""What all commands share: one line for a mistake, whatever the terminal can show."""

from __future__ import annotations

import io
import stat
import sys

import pytest

from gluon_resnetv2 import cli, doctor
from gluon_resnetv2.deploy import verify
from gluon_resnetv2.errors import UserError
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


def test_a_name_that_mxnet_cannot_take_is_told_in_one_line(monkeypatch, capsys, tmp_path):
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
    told = "no caf\\xe9"
    assert doctor._ask_mxnet() == {"error": told}
    with pytest.raises(UserError, match=r"failed: no caf\\xe9$"):
        profiling.run({})
    with pytest.raises(UserError, match=r"machine: no caf\\xe9$"):
        estimate._measured(False, Slot(None, 1))
    ((_, failure),) = verify._run(("block", None), tmp_path / "verify", [{}], [])
    assert failure == f"the process ended with status 1: {told}"
