"""The directive `rooms`: the package's parts and how they stand on each other, as a picture.

What stands on what is `LEVELS` of tests/test_layout.py, which enforces it; what a part is for, the
first line of its docstring.
"""

import ast
import html
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, TEST = ROOT / "gluon_resnetv2", ROOT / "tests" / "test_layout.py"


def levels() -> tuple[tuple[str, ...], ...]:
    """The names of the parts of each level, lowest first."""
    for node in ast.parse(TEST.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "LEVELS":
            return ast.literal_eval(node.value)
    raise LookupError(f"{TEST} has no LEVELS")


def purpose(part: str) -> str:
    """The first sentence of a module's docstring, or a package's."""
    path = PACKAGE / part / "__init__.py"
    path = path if path.exists() else PACKAGE / f"{part}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    if not text:
        raise LookupError(f"{path} has no docstring")
    return text.splitlines()[0]


def _room(part: str) -> str:
    words = html.escape(purpose(part)).replace("`", "")
    return f"<div><code>{part}</code><p>{words}</p></div>"


class Rooms(Directive):
    """The picture, highest level first."""

    def run(self) -> list[nodes.Node]:
        floors = [
            f'<div class="floor">{"".join(map(_room, level))}</div>' for level in reversed(levels())
        ]
        self.state.document.settings.env.note_dependency(str(TEST))
        return [nodes.raw("", f'<div class="house">{"".join(floors)}</div>', format="html")]


def setup(app) -> dict:
    """Makes the directive known to Sphinx."""
    app.add_directive("rooms", Rooms)
    return {"parallel_read_safe": True}
