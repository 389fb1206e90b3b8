"""Everything about the package is in pyproject.toml; this is for tools that ask for setup.py."""

from setuptools import setup

setup()
