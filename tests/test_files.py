"""Files written whole, and where they go."""

from __future__ import annotations

from gluon_resnetv2 import files


def test_the_cache_is_in_the_home_folder_unless_xdg_says_otherwise(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert str(files.cache_folder()) == "/home/someone/.cache/gluon_resnetv2"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(files.cache_folder()) == "/elsewhere/gluon_resnetv2"
