"""A study's report: one HTML page with its pictures inside, and the same as Markdown.

Nothing in it is typed: tables and sentences are made from the runs' records. The same records give
the same files, to the byte, but for the lines about time and machine.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

from gluon_resnetv2.files import whole_file
from gluon_resnetv2.study.section import Picture, Section, Table

STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 3rem; }
h1, h2 { line-height: 1.25; }
.claim { border-left: 3px solid #d55e00; padding-left: .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #ddd;
         white-space: nowrap; }
td:first-child, th:first-child { padding-left: 0; }
.number { text-align: right; }
figure { margin: 2rem 0; } img { width: 100%; min-width: 34rem; height: auto; }
figcaption, .about { font-size: .875rem; color: #555; }
"""


def write(sections: Sequence[Section], about: Sequence[str], folder: Path) -> Path:
    """Writes report.html, report.md and figures/ into `folder`; returns the page's path.

    Args:
        about: paragraphs on how it came about.

    Raises:
        OSError: the folder can't be written to.
    """
    parts = [part for section in sections for part in section.parts]
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    drawn = {part.name: _svg(part) for part in parts if isinstance(part, Picture)}
    for name, svg in drawn.items():
        with whole_file(folder / "figures" / f"{name}.svg") as temporary:
            temporary.write_bytes(svg)
    with whole_file(folder / "report.md") as temporary:
        temporary.write_text(_markdown(sections, about), encoding="utf-8")
    page = folder / "report.html"
    with whole_file(page) as temporary:
        temporary.write_text(_html(sections, about, drawn), encoding="utf-8")
    return page


TITLE = "Identity Mappings in Deep Residual Networks: the paper's claims, run again"


def _svg(picture: Picture) -> bytes:
    file = io.BytesIO()
    # Without a date and random identifiers, so that the same figure is the same file; text as text,
    # which halves it.
    with mpl.rc_context({"svg.hashsalt": picture.name, "svg.fonttype": "none"}):
        picture.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


# -- HTML ------------------------------------------------------------------------------------------


def _html(sections, about, drawn):
    body = [f"<h1>{html.escape(TITLE)}</h1>"]
    body += [f'<p class="about">{html.escape(line)}</p>' for line in about]
    if len(sections) > 1:
        items = (f'<li><a href="#{s.name}">{html.escape(s.title)}</a></li>' for s in sections)
        body.append(f"<ul>{''.join(items)}</ul>")
    for section in sections:
        body.append(f'<h2 id="{section.name}">{html.escape(section.title)}</h2>')
        body.append(f'<p class="claim">{html.escape(section.claim)}</p>')
        body += [_part_as_html(part, drawn) for part in section.parts]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(TITLE)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _part_as_html(part, drawn):
    if isinstance(part, Table):
        numeric = [_numeric(column) for column in zip(*part.rows)]
        rows = [_row("th", part.head, numeric), *(_row("td", row, numeric) for row in part.rows)]
        return f'<div class="scroll"><table>\n{chr(10).join(rows)}\n</table></div>'
    if isinstance(part, Picture):
        data = base64.b64encode(drawn[part.name]).decode()
        caption = html.escape(part.caption)
        return (
            f'<figure><div class="scroll"><img alt="{part.name}" '
            f'src="data:image/svg+xml;base64,{data}"></div>'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f"<p>{html.escape(part)}</p>"


def _row(tag, cells, numeric):
    cells = (
        f"<{tag}{' class=number' * right}>{html.escape(cell)}</{tag}>"
        for cell, right in zip(cells, numeric)
    )
    return f"<tr>{''.join(cells)}</tr>"


def _numeric(column) -> bool:
    """Whether a column's cells are numbers, or words that stand for one."""
    return all(re.match(r"[-+]?[\d.]+|fail|diverged|-$", cell) for cell in column)


# -- Markdown --------------------------------------------------------------------------------------


def _markdown(sections, about):
    blocks = [f"# {TITLE}", *about]
    for section in sections:
        blocks += [f"## {section.title}", f"> {section.claim}"]
        blocks += [_part_as_markdown(part) for part in section.parts]
    return "\n\n".join(blocks) + "\n"


def _part_as_markdown(part):
    if isinstance(part, Table):
        numeric = [_numeric(column) for column in zip(*part.rows)]
        rule = ["---:" if right else "---" for right in numeric]
        lines = [part.head, rule, *part.rows]
        cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)
    if isinstance(part, Picture):
        return f"![{part.name}](figures/{part.name}.svg)\n\n*{part.caption}*"
    return part
