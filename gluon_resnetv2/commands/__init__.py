"""The program's verbs, a module for each, which is loaded when its verb is asked for.

A module has `add_options(parser)` and `run(options)`, which returns the exit status: 0 or None for
success, `cli`'s for the rest. Loading it and adding its options imports no MXNet, so that `--help`
answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from gluon_resnetv2 import __version__, cli

# What each verb does, in the order in which --help shows them.
VERBS = {
    "doctor": "what works on this machine, and how each known hazard of MXNet stands here",
    "models": "the paper's networks, with their size, cost and reported error",
    "recipes": "recipes with a name: their command, source, cost and expected error",
    "train": "train a network, export it, and verify the export",
    "launch": "train on several machines, or with several processes on this one",
    "compare": "overlay the learning curves of runs, and tell what differs",
    "evaluate": "test error of a run or an export, and a report of its mistakes",
    "pack": "pack a folder of images, SOURCE/CLASS/*.JPEG, into RecordIO",
    "export": "write a run's network as a pair of files, graph and parameters, for MXNet",
    "convert": "convert weights of other implementations to an export, or back",
    "verify": "compare an exported pair with the training graph in every runtime",
    "predict": "the likeliest five classes of image files, or their features",
    "serve": "answer requests over HTTP, by the Open Inference Protocol v2",
    "profile": "where the time of a training step or an inference goes",
    "study": "train the networks of the paper's tables and figures, its numbers beside ours",
}


def parser(words: Sequence[str]) -> cli.Parser:
    """The parser of a command line, with the options of the one verb that it names.

    Its help has the program's name as the user typed it.
    """
    own = Path(sys.argv[0]).name == "resnetv2"
    prog = "resnetv2" if own else "python -m gluon_resnetv2"
    parser = cli.Parser(prog=prog, description="ResNet v2 on MXNet Gluon")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, about in VERBS.items():
        options = verbs.add_parser(name, help=about, description=about)
        if name in words[:1]:
            command = import_module(f"{__name__}.{name}")
            command.add_options(options)
            options.set_defaults(action=command.run)
    return parser
