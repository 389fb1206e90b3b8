import itertools
import subprocess
from pathlib import Path

import pytest

import gluon_resnetv2  # noqa: F401  # prepares the runtime before any test imports MXNet
from gluon_resnetv2.engines import choice

choice.native_library()  # compiles it, so that no command in a test says that it does

DIGITS = Path(__file__).resolve().parents[1] / "docs" / "digits"


@pytest.fixture(scope="session")
def digits_study(tmp_path_factory):
    """A folder with the records of the study in docs/digits, unpacked as its README says."""
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run(["tar", "-xf", DIGITS / "records.tar.gz", "-C", folder], check=True)
    return folder


@pytest.fixture(scope="session")
def fresh_folders(tmp_path_factory):
    """Paths of folders that are not there yet."""
    root = tmp_path_factory.mktemp("engines")
    return (root / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch, fresh_folders):
    """Has each test find out for itself what engines compute."""
    folder = next(fresh_folders)
    monkeypatch.setattr(choice, "folder", lambda: folder)
