"""Images that can't be decoded: found once in a data set, all listed, then left out or an error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tqdm import tqdm

from gluon_resnetv2.data.imagenet.images import Source, read
from gluon_resnetv2.data.imagenet.progress import in_turn, told
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import whole_file
from gluon_resnetv2.untrusted import read_bytes

MARKER_BYTES = 1 << 26  # with room for a line for every image of ImageNet


def check(sources: Sequence[Source], pool: ThreadPoolExecutor, leave_out: bool = False) -> None:
    """Decodes all images, unless an earlier call or `pack` did: their `marker` says so.

    That file also says which are damaged, and these are looked at again; where the folder can't be
    written to, all images are checked each time. Sources that were checked before, or are a part
    of such a one, are not looked at.

    Args:
        leave_out: the sources forget images that can't be decoded; else they are an error.

    Raises:
        UserError: some can't be decoded, each named on standard error; or a whole class.
    """
    sources = [source for source in sources if not source.checked]
    bad = {source: _damaged(source, pool) for source in sources}
    messages = [message for found in bad.values() for message in found.values()]
    for message in messages:
        tqdm.write(message, file=sys.stderr)
    if messages and not leave_out:
        raise UserError(
            f"{len(messages)} of {sum(map(len, sources))} images can't be read, the first: "
            f"{messages[0]}; mend them, or leave them out with --leave-out"
        )
    for source, found in bad.items():
        if found:
            source.leave_out(list(found))
            _refuse_to_lose(source)
            print(f"{source.path}: {len(found)} images are left out", file=sys.stderr)
        source.checked = True


def mark(source: Source, bad: Sequence[int] = ()) -> None:
    """Notes beside a source which of its images can't be decoded.

    Raises:
        OSError: the folder can't be written to.
    """
    with whole_file(source.marker) as temporary:
        temporary.write_text(_head(source) + "".join(f"{row}\n" for row in bad))


def _head(source: Source) -> str:
    return f"{source.contents()}, all decoded once\n"


def _damaged(source: Source, pool: ThreadPoolExecutor) -> dict[int, str]:
    """What is wrong with each row that can't be decoded."""
    problem = partial(_problem, source)
    known = _known(source)
    if known is not None:
        again = in_turn(pool, problem, known)
        found = {row: message for row, message in zip(known, again) if message}
        if len(found) == len(known):
            return found
    rows = told(in_turn(pool, problem, range(len(source))), f"check {source.path}", len(source))
    found = {row: message for row, message in enumerate(rows) if message}
    with contextlib.suppress(OSError):
        mark(source, list(found))
    return found


def _known(source: Source) -> list[int] | None:
    """The rows that can't be decoded, as far as an earlier check has told."""
    try:
        data = read_bytes(source.marker, MARKER_BYTES)
        head, *rows = data.decode("utf-8").splitlines(keepends=True)
        known = [int(row) for row in rows]
    except ValueError:  # it can't be read, or is another file
        return None
    return known if head == _head(source) and all(0 <= n < len(source) for n in known) else None


def _problem(source: Source, row: int) -> str | None:
    try:
        read(source, row)
    except UserError as error:
        return str(error)
    return None


def _refuse_to_lose(source: Source) -> None:
    """A class whose images are all damaged is more than an image to be left out."""
    left = source.present()
    for label, name in zip(source.class_labels, source.classes):
        if label not in left:
            raise UserError(f"{source.path}: class {name} has no image that can be decoded")
