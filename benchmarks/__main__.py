"""Every comparison with others, one after another, and a page of what came out.

python -m benchmarks
python -m benchmarks --quick
python -m benchmarks --report docs/benchmarks

Writes NAME.json and NAME.png of each into a folder, and README.md with all tables. The machine
should have nothing else to do. The data pipeline, recomputation and the server have commands of
their own.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import inference, rounds, startup, training, updates
from benchmarks.peers import LIMITS
from gluon_resnetv2 import cli
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import whole_file
from gluon_resnetv2.machine import cpus

MODULES = {"training": training, "inference": inference, "startup": startup, "updates": updates}
OUTPUT, QUICK_OUTPUT = "docs/benchmarks", "runs/benchmarks"
# Of the deep networks and the large images only these: an hour is enough for all.
MAIN = (
    *("GluonCV", "PyTorch eager", "PyTorch bf16 compiled"),
    *("ours float32", "ours native float32", "ours native bfloat16", *LIMITS),
)
SERVING = (
    *inference.BASES,
    *("ours bfloat16", "ours int8"),
    *("ours native float32", "ours native bfloat16", "ours native int8", *LIMITS),
)


def full(count: int, threads: int) -> dict[str, Iterator[dict]]:
    """The cases of each comparison, which are measured as they are asked for."""
    return {
        "training": itertools.chain(
            training.cases(["preact20"], training.WAYS, count, 2, 64),
            training.cases(["preact110", "preact164"], MAIN, count, 3, 64),
            training.cases(["preact50"], MAIN, count, 3, 16),
        ),
        "inference": itertools.chain(
            inference.cases(["preact20"], inference.WAYS, count, 1, [64, 1], threads),
            inference.cases(["preact110"], SERVING, count, 1, [64, 1], threads),
            inference.cases(["preact50"], SERVING, count, 1, [16, 1], threads),
        ),
        "startup": startup.cases(["preact1001"], None, count, 8),
        "updates": updates.cases(["preact1001"], updates.WAYS, count, 3),
    }


def quick(count: int, threads: int) -> dict[str, Iterator[dict]]:
    """The same in little, to try."""
    model = ["preact20"]
    return {
        "training": training.cases(model, training.WAYS, count, 0.1, 8),
        "inference": inference.cases(model, inference.WAYS, count, 0.1, [8, 1], threads),
        "startup": startup.cases(model, None, count, 8),
        "updates": updates.cases(model, updates.WAYS, count, 0.1),
    }


def measure(plan: Callable, count: int, threads: int, folder: Path) -> None:
    """Makes every comparison of `full` or `quick`; the JSON is there as soon as a case is done."""
    load = rounds.load_before()  # later it would be our own
    for name, cases in plan(count, threads).items():
        output = str(folder / name)
        options = argparse.Namespace(rounds=count, threads=threads, output=output)
        rounds.compare(MODULES[name].__doc__, options, cases, load)


def report(folder: Path) -> None:
    """Writes README.md and the pictures from the JSON in `folder`.

    Raises:
        UserError: there is none, or it is none of ours.
    """
    sections, machines = [], {}
    for name in MODULES:
        path = folder / f"{name}.json"
        if not path.is_file():
            continue
        try:
            document = rounds.read(path)
            sections.append(section(name, document))
            rounds.draw(document["cases"], folder / f"{name}.png")
            machines.setdefault(document["machine"], []).append(name)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no comparison of ours: {error!r}") from None
    if not sections:
        raise UserError(f"{folder} has none of {', '.join(f'{name}.json' for name in MODULES)}")
    lines = [f"- {', '.join(names)}: {machine}" for machine, names in machines.items()]
    head = ["# Benchmarks", "Written by `python -m benchmarks`.", "\n".join(lines)]
    with whole_file(folder / "README.md") as temporary:
        pieces = filter(None, [*head, summary(folder), *sections])
        temporary.write_text("\n\n".join(pieces) + "\n", encoding="utf-8")


def summary(folder: Path) -> str:
    """A table of how many times as fast as others our best way is; in training, and our float32."""
    bases = inference.BASES
    rows = [["", *bases], ["---", *["---:"] * len(bases)]]
    for name in ("training", "inference"):
        path = folder / f"{name}.json"
        for one in rounds.read(path)["cases"] if path.is_file() else ():
            ours = {way: v for way, v in one["ways"].items() if way.startswith("ours")}
            best = max(ours, key=lambda way: ours[way]["median"])
            ways = [best, "ours native float32"] if name == "training" else [best]
            for way in dict.fromkeys(ways):
                ratios = ours[way]["ratios"]
                cells = [rounds.ratio(one, ratios[b]) if b in ratios else "" for b in bases]
                rows.append([f"{one['title']}, {way.removeprefix('ours ')}", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) if rows[2:] else ""


def section(name: str, document: dict) -> str:
    """One comparison, for the page."""
    parts = [f"## {document['title'].rstrip('.')}", document["method"]]
    parts.append(rounds.conditions(document))
    parts.append(f"![{name}]({name}.png)")
    for one in document["cases"]:
        parts += [f"### {one['title']}", rounds.markdown(one)]
    return "\n\n".join(parts)


def main() -> None:
    parser = cli.Parser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=rounds.at_least_1, help="of each way; default: 5")
    parser.add_argument("--threads", type=rounds.at_least_1, default=cpus())
    parser.add_argument("--quick", action="store_true", help="small, and 1 round: to try")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help=f"default: {OUTPUT}; quick: {QUICK_OUTPUT}"
    )
    parser.add_argument("--report", type=Path, metavar="DIR", help="only write DIR's page anew")
    args = parser.parse_args()
    if args.report:
        report(args.report)
        return
    folder = args.output or Path(QUICK_OUTPUT if args.quick else OUTPUT)
    plan, count = (quick, 1) if args.quick else (full, 5)
    measure(plan, args.rounds or count, args.threads, folder)
    report(folder)


if __name__ == "__main__":
    cli.run(main)
