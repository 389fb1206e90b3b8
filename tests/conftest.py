import subprocess
from pathlib import Path

import pytest

import gluon_resnetv2  # noqa: F401  # prepares the runtime before any test imports MXNet

DIGITS = Path(__file__).resolve().parents[1] / "docs" / "digits"


@pytest.fixture(scope="session")
def digits_study(tmp_path_factory):
    """A folder with the records of the study in docs/digits, unpacked as its README says."""
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run(["tar", "-xf", DIGITS / "records.tar.gz", "-C", folder], check=True)
    return folder
