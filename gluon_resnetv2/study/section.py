"""What a study has to say, before it becomes HTML or Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Cells as text; numbers among them are aligned to the right."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its file, and what to see in it."""

    name: str
    figure: Figure
    caption: str


Part = Table | Picture | str


@dataclass(frozen=True)
class Section:
    """One claim of the paper beside what was measured.

    Attributes:
        name: as the command line has it.
        claim: what the paper says, and where.
        parts: tables, pictures and paragraphs, in their order.
    """

    name: str
    title: str
    claim: str
    parts: list[Part]
