"""What every command has in common: strict options, and mistakes told in one line."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Container, Iterator, Mapping, Sequence

from gluon_resnetv2.errors import UserError, last_line

# Exit statuses, beside 0 for what is done and 1 for what has failed.
MISTAKE = 2  # told in one line; the same command would fail again
STOPPED = 3  # a signal ended it before its end, and the command that it printed goes on

NAMED = 3  # of the files of a kind that are left out

WAYS_OUT: dict[int | None, str] = {
    errno.ENOSPC: "; make room, or name another folder",
    errno.EDQUOT: "; make room, or name another folder",
    errno.EROFS: "; name another folder",
    errno.EACCES: "; name another folder",
    errno.ENOTDIR: "; name another folder",
}


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each option's default where there is one to show."""

    def _get_help_string(self, action):
        nothing = action.default is False or action.default in (None, [], ())
        return action.help if nothing else super()._get_help_string(action)

    def _split_lines(self, text, width):
        return textwrap.wrap(text, width, break_on_hyphens=False)  # options stay whole


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviation and answers a mistake with one line."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"formatter_class": Help, **kwargs, "allow_abbrev": False})

    def parse_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else args
        if "" in words or any(word[:2] == "--" and word.endswith("=") for word in words):
            self.error("an argument is empty; is a variable unset?")
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown option {unknown[0]}{self._suggestion(unknown[0])}")
        return parsed

    def _suggestion(self, option: str) -> str:
        close = difflib.get_close_matches(option.split("=")[0], self._option_string_actions, n=1)
        return f"; did you mean {close[0]}?" if close else ""

    def error(self, message):
        self.exit(MISTAKE, f"{self.prog}: {message} (--help lists the options)\n")


def shape(text: str) -> tuple[int, int, int]:
    """The (channels, height, width) of an option C,H,W."""
    sizes = text.split(",")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{text} is no C,H,W, as in 3,224,224")
    channels, height, width = map(int, sizes)
    return channels, height, width


def add_shape(parser: argparse.ArgumentParser) -> None:
    """The option --shape of verbs that take any pair."""
    about = (
        "shape of an image, for a pair without manifest: C,H,W, or H,W,C if the graph takes that"
    )
    parser.add_argument("--shape", type=shape, help=about)


def numbers(text: str) -> tuple[int, ...]:
    """The numbers of an option N,N,..."""
    return tuple(int(number) for number in text.split(","))


numbers.__name__ = "N,N,..."  # argparse names it in its message


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with status 2 and one line where the block meets a mistake of the user's.

    Status 130 and a line for Ctrl-C; a reader that went away ends it without a word.
    """
    try:
        yield
        return
    except UserError as error:
        message = str(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(1)
    except UnicodeEncodeError as error:  # of a file's name with bytes that aren't UTF-8
        message = (
            f"{error.object!r} is no text in UTF-8, which MXNet needs of names; choose another"
        )
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror or error}{WAYS_OUT.get(error.errno, '')}"
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    complain(message)
    sys.exit(MISTAKE)


def complain(message: object) -> None:
    """Says what is wrong, as every command does."""
    print(f"error: {printable(str(message))}", file=sys.stderr)  # files may be called anything


def tell_left_out(path: object, kinds: Mapping[str, Sequence[str]], images: str) -> None:
    """Says on stderr, where there are any, which files below `path` are left out.

    Args:
        kinds: files by what is wrong with them, in words that follow their number.
        images: what is not left out.
    """
    told = [
        f"{len(files)} {kind} ({', '.join(sorted(files)[:NAMED])}{', ...' * (len(files) > NAMED)})"
        for kind, files in kinds.items()
        if files
    ]
    if told:
        line = f"{path}: left out are {', '.join(told)}; {images}"
        print(printable(line), file=sys.stderr)


def printable(text: str) -> str:
    """`text` without what a terminal would obey: such characters are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def aligned(lines: Sequence[Sequence[str]], right: Container[int] = ()) -> str:
    """Lines of cells as text in columns, those numbered in `right` aligned to the right."""
    padded = []
    for number, column in enumerate(zip(*lines)):
        width = max(map(len, column))
        pad = str.rjust if number in right else str.ljust
        padded.append([pad(cell, width) for cell in column])
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded))


def run_module(module: str, job: dict, failed: str, **environment: str) -> str:
    """What `python -m module JSON` prints, in a process of its own.

    Args:
        job: what the JSON says.
        failed: what to say has failed, where it does.

    Raises:
        UserError: it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(job)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="backslashreplace",
    )
    if done.returncode:
        raise UserError(f"{failed}: {last_line(RuntimeError(done.stderr))}")
    return done.stdout


ANSWER = "answer "  # how a line begins that a process of ours prints for us, among its libraries'


def answer(value: object) -> None:
    """Prints, for `answers`, what a process of ours has found; JSON has to have it."""
    print(f"{ANSWER}{json.dumps(value)}", flush=True)


def answers(printed: str) -> list:
    """What a process has given to `answer`, in order, whatever its libraries printed between."""
    lines = (line for line in printed.splitlines() if line.startswith(ANSWER))
    return [json.loads(line.removeprefix(ANSWER)) for line in lines]


def run(main: Callable[[], int | None]) -> None:
    """Runs `main` within `one_line_errors` and exits with what it returns.

    What standard output's encoding lacks is escaped, as it is on standard error.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # it may be closed
        sys.stdout.reconfigure(errors="backslashreplace")
    with one_line_errors():
        status = main()
        if sys.stdout:
            sys.stdout.flush()  # here rather than at exit, where a full disk would be a traceback
    sys.exit(status)
