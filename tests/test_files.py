"""Files written whole, and where they go."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys

import pytest

from gluon_resnetv2 import files
from gluon_resnetv2.data.cifar import load_cifar10
from gluon_resnetv2.errors import UserError

# Writes the folder argv[1] and is killed before it renames for the argv[2]-th time, counted from 0.
KILLED = """
import os, signal, sys
from gluon_resnetv2.files import whole_folder

def replace(source, target, replace=os.replace, left=iter(range(int(sys.argv[2]), -1, -1))):
    if not next(left):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = replace
with whole_folder(sys.argv[1]) as temporary:
    (temporary / "file").write_text("new")
"""


def replace_and_be_killed(folder, renames):
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(renames)], check=False)
    assert done.returncode == -9


@pytest.fixture
def folder(tmp_path):
    """One that holds a file, and nothing else beside it."""
    with files.whole_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("old")
    assert os.listdir(tmp_path) == ["folder"]
    return tmp_path / "folder"


@pytest.mark.parametrize("renames", [0, 1])
def test_what_a_killed_process_was_replacing_comes_back(folder, renames):
    replace_and_be_killed(folder, renames)
    assert folder.exists() is (renames == 0)
    files.recover_folder(folder)
    assert (folder / "file").read_text() == "old"
    assert os.listdir(folder.parent) == ["folder"]


def test_pipes_beside_a_folder_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".folder.abcdefgh.new")
    code = "import sys; from gluon_resnetv2 import files; files.recover_folder(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "folder")], check=True, timeout=60)


def test_writing_again_leaves_nothing_of_a_killed_process(folder):
    replace_and_be_killed(folder, 1)
    with files.whole_folder(folder) as temporary:
        (temporary / "file").write_text("newer")
    assert (folder / "file").read_text() == "newer"
    assert os.listdir(folder.parent) == ["folder"]


def test_what_is_being_written_is_left_alone(folder):
    with files.whole_folder(folder) as temporary:
        (temporary / "file").write_text("new")
        code = "import sys; from gluon_resnetv2 import files; files.recover_folder(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
        assert os.listdir(temporary) == ["file"]
        files.recover_folder(folder)  # nor by the same process
    assert (folder / "file").read_text() == "new"


def test_what_others_have_put_beside_a_folder_stays(folder):
    for name in (".folder.old_copy", ".folder.before", ".folder2.abcdefgh.new", "folder.new"):
        folder.with_name(name).mkdir()
    before = os.listdir(folder.parent)
    files.recover_folder(folder)
    assert os.listdir(folder.parent) == before


def test_what_came_in_a_folder_s_place_is_not_overwritten(folder):
    replace_and_be_killed(folder, 1)
    folder.mkdir()
    (folder / "other").touch()
    files.recover_folder(folder)
    assert os.listdir(folder) == ["other"]


def test_the_cache_is_in_the_home_folder_unless_xdg_says_otherwise(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert str(files.cache_folder()) == "/home/someone/.cache/gluon_resnetv2"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(files.cache_folder()) == "/elsewhere/gluon_resnetv2"


def test_a_user_whom_the_system_does_not_know_is_told_the_way_out(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # as in a container run with any number
    with pytest.raises(UserError, match=r"no home folder is known for ~/\.cache; set HOME or XDG"):
        files.cache_folder()
    with pytest.raises(UserError, match="no home folder is known for ~nobody-of-this-name/cifar"):
        load_cifar10("~nobody-of-this-name/cifar")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(files.cache_folder()) == "/elsewhere/gluon_resnetv2"
