"""`python -m gluon_resnetv2 study`: what it prints, and what it leaves behind."""

from __future__ import annotations

import argparse
import contextlib
import platform
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

from gluon_resnetv2 import machine
from gluon_resnetv2.cli import STOPPED, aligned
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.study import report
from gluon_resnetv2.study.estimate import estimate
from gluon_resnetv2.study.plan import Settings
from gluon_resnetv2.study.rows import Row
from gluon_resnetv2.study.runner import execute, slots
from gluon_resnetv2.study.studies import STUDIES
from gluon_resnetv2.training.progress import duration


def main(options: argparse.Namespace) -> int:
    """Trains what is missing, and writes the report.

    Raises:
        UserError: an option makes no sense, or a run failed.
    """
    studies = _chosen(options)
    if options.list:
        print(_listing(studies, options.rows))
        return 0
    for name in ("seeds", "depth", "budget", "gpus_per_run", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if options.gpus:
        machine.check_gpus(options.gpus)
    folder = Path(options.output or f"studies/{options.dataset}")
    settings = Settings(
        dataset=options.dataset,
        data_dir=options.data_dir,
        seeds=options.seeds,
        depth=options.depth,
        budget=options.budget,
        output=str(folder),
    )
    planned = {study.name: study.plan(_rows(study, options.rows), settings) for study in studies}
    places = slots(options.gpus, options.gpus_per_run, options.jobs)
    runs = list(dict.fromkeys(run for rows in planned.values() for _, same in rows for run in same))
    missing = [run for run in runs if run.outcome() is None]
    needy = not options.data_dir and any(run.recipe.dataset == "imagenet" for run in missing)
    if needy and not options.dry_run:
        raise UserError("--data-dir is missing: ImageNet's folder, with train and val")
    seconds = estimate(missing, places[0])
    if options.dry_run:
        print(_dry_run(planned, seconds, len(places)))
        return 0
    if missing:
        print(_ahead(runs, missing, seconds, len(places)), flush=True)
    if not execute(missing, places, seconds):
        print("stopped; the same command goes on")
        return STOPPED
    outcomes = {run: run.outcome() for run in runs}
    sections = [
        study.section(
            [Row(result, same, [outcomes[run] for run in same]) for result, same in rows], settings
        )
        for study, rows in zip(studies, planned.values())
    ]
    page = report.write(sections, _about(outcomes), folder)
    print(f"report: {page}")
    return 0


def _chosen(options):
    if unknown := set(options.names) - set(STUDIES) - {"all"}:
        raise UserError(f"no study '{min(unknown)}'; choose {', '.join(STUDIES)}, or all")
    if not options.names and not options.list:
        raise UserError(f"name a study: {', '.join(STUDIES)}, or all")
    names = options.names
    if not names or "all" in names:
        names = list(STUDIES)
        if not options.data_dir and not options.list:
            names.remove("table5")
            print("left out: table5, which is of ImageNet and needs --data-dir")
    studies = [STUDIES[name] for name in dict.fromkeys(names)]
    if not options.rows:
        return studies
    with_rows = [study for study in studies if _rows(study, options.rows)]
    if not with_rows:
        raise UserError(f"no row {' '.join(options.rows)} there; see: study --list")
    return with_rows


def _rows(study, wanted):
    """The results of a study that --rows names, or all."""
    return [
        result
        for result in study.results
        if not wanted or {result.key, *result.key.split("/")} & set(wanted)
    ]


def _listing(studies, wanted):
    lines = [("study", "row", "order", "shortcut", "layers", "parameters", "data", "paper's error")]
    for study in studies:
        for result in _rows(study, wanted):
            spec = result.spec
            lines.append((
                study.name, result.key, spec.order,
                str(spec.shortcut) if spec.has_shortcut else "plain", str(spec.depth),
                f"{spec.parameter_count():,}", result.data,
                str(result) + (f" (top-5 {result.error5:.1f})" if result.error5 else ""),
            ))  # fmt: skip
    return aligned(lines, right=(4, 5))


def _dry_run(planned, seconds, places):
    lines = []
    for name, rows in planned.items():
        lines.append(f"{name}:")
        for result, same in rows:
            lines.append(f"  {result.key}: the paper's error {result}")
            for run in same:
                cost = f"about {duration(seconds[run])}" if run in seconds else "done"
                lines.append(f"    {cost}: {run.command()}")
    lines.append(_total(seconds, places))
    return "\n".join(lines)


def _ahead(runs, missing, seconds, places):
    count, left = (len({run.folder for run in some}) for some in (runs, missing))
    return f"{count - left} of {count} runs are done; {_total(seconds, places)}"


def _total(seconds, places):
    by_folder = {run.folder: cost for run, cost in seconds.items()}  # tested twice, trained once
    if not by_folder:
        return "nothing is left to train"
    total = sum(by_folder.values()) / min(places, len(by_folder))
    return f"{len(by_folder)} to train, {places} at a time: about {duration(total)} on this machine"


PROXY = (
    "Digits are a proxy. They show which networks train at all, and how fast; they can't show "
    "regularisation, nor differences of a percent or two, which are a few of 360 test images. One "
    "learning rate serves all rows: where it is too large for a network, as it is for the original "
    "ResNet-110, the error measures how far the network has recovered since it was raised. "
    "docs/digits/README.md has a row at a tenth of the rate, and the command."
)


def _about(outcomes):
    """How the report came about, in paragraphs."""
    seconds = sum(outcome.seconds for outcome in outcomes.values())
    trained = dict.fromkeys(_training(run.recipe) for run in outcomes)
    lines = [
        f"Written on {_machine()}, by: python -m gluon_resnetv2 {shlex.join(sys.argv[1:])}",
        f"{len(outcomes)} runs, {duration(seconds)} of training in all.",
    ]
    if trained:
        lines.append(f"Trained on {'; '.join(trained)}.")
    if any(run.recipe.dataset == "digits" for run in outcomes):
        lines.append(PROXY)
    return lines


def _training(recipe):
    count = recipe.num_steps or recipe.num_epochs
    length = f"{count} {'step' if recipe.num_steps else 'epoch'}{'s' * (count > 1)}"
    return f"{recipe.dataset} for {length}, batches of {recipe.batch_size}, rate {recipe.lr:g}"


def _machine():
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        name = found[1] if found else name  # which ARM's lacks
    versions = f"Python {platform.python_version()}, MXNet {metadata.version(machine.wheels()[0])}"
    return f"{machine.cpus()} CPUs ({name}), {versions}"
