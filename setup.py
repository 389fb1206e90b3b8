"""What pyproject.toml can not say: the README without links that lead nowhere but in a checkout."""

import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).with_name("README.md").read_text("utf-8")

setup(
    long_description=re.sub(r"!?\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", README),
    long_description_content_type="text/markdown",
)
