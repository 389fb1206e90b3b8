"""The paper's rows as data, the runs that they become, and the report on them."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gluon_resnetv2 import cli, commands
from gluon_resnetv2.commands import train
from gluon_resnetv2.engines import choice
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.paper import FAIL, RESULTS
from gluon_resnetv2.spec import named
from gluon_resnetv2.study import main, report, runner
from gluon_resnetv2.study.estimate import Speed, measure, seconds
from gluon_resnetv2.study.plan import Outcome, Planned, Settings, plan
from gluon_resnetv2.study.rows import Row, contradictions, errors_table, rank_correlations
from gluon_resnetv2.study.runner import Slot, slots
from gluon_resnetv2.study.studies import STUDIES
from gluon_resnetv2.training.options import read_options
from gluon_resnetv2.training.recipe import Recipe
from gluon_resnetv2.training.run import read_metrics
from gluon_resnetv2.training.step import Step
from tests.imagenet_tree import make_tree

ROOT = Path(__file__).resolve().parents[1]

# The paper's tables, typed from it: order, shortcut, depth, unit, error, by table.
CIFAR10, CIFAR100 = "CIFAR-10", "CIFAR-100"
TABLE_1 = [
    ("identity", 6.61),
    ("scale:0,1", FAIL),
    ("scale:0.5,1", FAIL),
    ("scale:0.5,0.5", 12.35),
    ("exclusive-gate:0", FAIL),
    ("exclusive-gate:-5", FAIL),
    ("exclusive-gate:-6", 8.70),
    ("exclusive-gate:-7", 9.81),
    ("gate:0", 12.86),
    ("gate:-6", 6.91),
    ("conv1x1", 12.22),
    ("dropout:0.5", FAIL),
]
TABLE_2 = [
    ("original", 6.61, 5.93),
    ("bn_after_add", 8.17, 6.50),
    ("relu_before_add", 7.84, 6.14),
    ("relu_preact", 6.71, 5.91),
    ("full_preact", 6.37, 5.46),
]
TABLE_3 = [
    (CIFAR10, 110, "single", 9.90, 8.91),
    (CIFAR10, 110, "basic", 6.61, 6.37),
    (CIFAR10, 164, "bottleneck", 5.93, 5.46),
    (CIFAR10, 1001, "bottleneck", 7.61, 4.92),
    (CIFAR100, 164, "bottleneck", 25.16, 24.33),
    (CIFAR100, 1001, "bottleneck", 27.82, 22.71),
]
TABLE_4 = [  # with millions of parameters
    (CIFAR10, "original", 110, 1.7, 6.61),
    (CIFAR10, "original", 1202, 19.4, 7.93),
    (CIFAR10, "full_preact", 164, 1.7, 5.46),
    (CIFAR10, "full_preact", 1001, 10.2, 4.92),
    (CIFAR10, "full_preact", 1001, 10.2, 4.62),
    (CIFAR100, "original", 164, 1.7, 25.16),
    (CIFAR100, "original", 1001, 10.2, 27.82),
    (CIFAR100, "full_preact", 164, 1.7, 24.33),
    (CIFAR100, "full_preact", 1001, 10.2, 22.71),
]
TABLE_5 = [
    ("original", 152, 224, "scale", 23.0, 6.7),
    ("original", 152, 320, "scale", 21.3, 5.5),
    ("full_preact", 152, 320, "scale", 21.1, 5.5),
    ("original", 200, 320, "scale", 21.8, 6.0),
    ("full_preact", 200, 320, "scale", 20.7, 5.3),
    ("full_preact", 200, 320, "scale-aspect", 20.1, 4.8),
]
V1 = [(20, 8.75), (32, 7.51), (44, 7.17), (56, 6.97), (110, 6.43), (1202, 7.93)]


def described(name):
    """(result, the Spec of its planned network, its recipe) for each row, at the paper's scale."""
    rows = plan(STUDIES[name].results, Settings("paper", data_dir="DIR", seeds=1))
    classes = {CIFAR10: 10, CIFAR100: 100, "ImageNet": 1000}
    for result, (run,) in rows:
        yield result, run.recipe.spec(classes[result.data]), run.recipe


def paper_training(recipe):
    """Whether a CIFAR recipe is the paper's appendix."""
    schedule = recipe.schedule(steps_per_epoch=391)
    at = [schedule(step) for step in (0, 399, 400, 31999, 32000, 47999, 48000, 63999)]
    return (
        (recipe.batch_size, recipe.num_steps, recipe.mom, recipe.wd) == (128, 64000, 0.9, 1e-4)
        and at == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
        and (recipe.optimizer, recipe.init, recipe.dtype) == ("sgd", "in", "float32")
    )


def test_table_1_has_the_papers_networks():
    found = list(described("table1"))
    assert [(str(spec.shortcut), result.error) for result, spec, _ in found] == TABLE_1
    assert {(s.order, s.depth, s.unit, s.widening) for _, s, _ in found} == {
        ("original", 110, "basic", "A")
    }
    assert all(paper_training(recipe) and recipe.dataset == "cifar10" for *_, recipe in found)
    # 110 layers have 1,727,962 parameters; a gate adds a 1x1 convolution with bias to each unit, a
    # 1x1 convolution with BN stands on each shortcut.
    widths = [(16, 16)] * 18 + [(16, 32)] + [(32, 32)] * 17 + [(32, 64)] + [(64, 64)] * 17
    gates = sum(i * o + o for i, o in widths)
    convs = sum(i * o + 2 * o for i, o in widths)
    for _, spec, _ in found:
        extra = {"gate": gates, "exclusive-gate": gates, "conv1x1": convs}
        kind = str(spec.shortcut).partition(":")[0]
        assert spec.parameter_count() == 1_727_962 + extra.get(kind, 0)


def test_gates_start_with_the_papers_biases():
    for _, spec, _ in described("table1"):
        if "gate" not in str(spec.shortcut):
            continue
        net = ResNetV2(named("resnet8", shortcut=spec.shortcut))
        net.initialize()
        biases = [p.data() for n, p in net.collect_params().items() if n.endswith("gate_bias")]
        expected = float(str(spec.shortcut).partition(":")[2])
        assert len(biases) == 3
        assert all((bias.asnumpy() == expected).all() for bias in biases)


def test_table_2_has_the_papers_networks():
    found = [(s.order, s.depth, s.unit, r.error) for r, s, _ in described("table2")]
    expected = [
        (order, depth, unit, error)
        for order, *errors in TABLE_2
        for depth, unit, error in zip((110, 164), ("basic", "bottleneck"), errors)
    ]
    assert found == expected
    assert all(paper_training(recipe) for *_, recipe in described("table2"))


def test_table_3_has_the_papers_networks():
    found = [(r.data, s.order, s.depth, s.unit, r.error) for r, s, _ in described("table3")]
    expected = [
        (data, order, depth, unit, error)
        for data, depth, unit, *errors in TABLE_3
        for order, error in zip(("original", "full_preact"), errors)
    ]
    assert found == expected
    for result, _, recipe in described("table3"):
        assert paper_training(recipe)
        assert recipe.dataset == {CIFAR10: "cifar10", CIFAR100: "cifar100"}[result.data]


def test_table_4_has_the_papers_networks():
    found = list(described("table4"))
    assert [(r.data, s.order, s.depth, r.error) for r, s, _ in found] == [
        (data, order, depth, error) for data, order, depth, _, error in TABLE_4
    ]
    for (_, spec, _), (*_, millions, _) in zip(found, TABLE_4):
        assert spec.parameter_count() / 1e6 == pytest.approx(millions, abs=0.16)
    small = [recipe for *_, recipe in found if recipe.batch_size == 64]
    assert [(r.model, r.num_epochs, r.init, r.warmup_steps) for r in small] == [
        ("preact1001", 200, "out", 0)  # the authors' released code
    ]
    assert sum(map(paper_training, (recipe for *_, recipe in found))) == len(TABLE_4) - 1


def test_table_5_has_the_papers_networks():
    rows = plan(STUDIES["table5"].results, Settings("paper", data_dir="DIR", seeds=1))
    found = [
        (run.recipe.spec(1000).order, run.recipe.spec(1000).depth, run.test_size,
         run.recipe.augmentation, result.error, result.error5)
        for result, (run,) in rows
    ]  # fmt: skip
    assert found == TABLE_5
    for _, (run,) in rows:
        recipe = run.recipe
        schedule = recipe.schedule(steps_per_epoch=5005)
        at = [schedule(5005 * epoch) for epoch in (0, 29, 30, 59, 60, 89)]
        assert at == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
        assert (recipe.batch_size, recipe.num_epochs, recipe.dataset) == (256, 90, "imagenet")
    crops = [run for _, (run,) in rows][:2]
    assert crops[0].folder == crops[1].folder  # trained once, tested twice


def test_the_rows_of_v1():
    found = {(r.model, r.error) for r in STUDIES["degradation"].results}
    assert found == {
        *((f"resnet{depth}", error) for depth, error in V1),
        *((f"plain{depth}", None) for depth in (20, 32, 44, 56)),
    }
    for _, spec, recipe in described("degradation"):
        assert (spec.order, spec.unit, spec.widening) == ("original", "basic", "A")
        assert paper_training(recipe)


def test_every_row_of_a_study_has_a_name_of_its_own():
    for study in STUDIES.values():
        keys = [result.key for result in study.results]
        assert len(set(keys)) == len(keys)
    studied = {result for study in STUDIES.values() for result in map(id, study.results)}
    assert all(id(result) in studied for result in RESULTS if result.source != "-")


@pytest.mark.parametrize("dataset", ["digits", "cifar100", "paper"])
@pytest.mark.parametrize("name", ["table1", "table4", "table5"])
def test_the_command_of_a_run_is_the_run(name, dataset, tmp_path):
    if name == "table5" and dataset == "cifar100":
        with pytest.raises(UserError, match="is of ImageNet; leave out --dataset"):
            plan(STUDIES[name].results, Settings(dataset))
        return
    settings = Settings(dataset, data_dir="DIR", seeds=2, output=str(tmp_path))
    for _, runs in plan(STUDIES[name].results, settings):
        for run in runs:
            words = shlex.split(run.command())
            assert words[:4] == ["python", "-m", "gluon_resnetv2", "train"]
            parser = cli.Parser()
            train.add_options(parser)
            recipe, resume = read_options(vars(parser.parse_args(words[4:])))
            assert recipe == run.recipe
            assert not resume


def test_rows_with_one_network_share_their_runs():
    original = plan(STUDIES["table1"].results[:1], Settings())
    first = next(r for r in STUDIES["table2"].results if r.key == "resnet110/original")
    assert plan([first], Settings())[0][1] == original[0][1]
    settings = Settings(depth=56)
    without = next(r for r in STUDIES["table1"].results if r.key == "resnet110/plain")
    plain = next(r for r in STUDIES["degradation"].results if r.key == "plain56")
    assert plan([without], settings)[0][1] == plan([plain], settings)[0][1]
    assert len({run.folder for run in original[0][1]}) == 3


def test_another_budget_is_another_run_and_keeps_the_learning_rates_shape():
    identity = STUDIES["table1"].results[:1]
    ((_, (whole,)),) = plan(identity, Settings("cifar10", seeds=1))
    ((_, (short,)),) = plan(identity, Settings("cifar10", seeds=1, budget=8))
    assert whole.folder != short.folder
    rates = [short.recipe.schedule(391)(391 * epoch - 1) for epoch in (2, 4, 5, 6, 7, 8)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    last = STUDIES["table5"].results[-1]
    ((_, (aspect,)),) = plan([last], Settings("paper", "DIR", seeds=1, budget=9))
    assert (aspect.recipe.num_epochs, aspect.recipe.lr_step_epochs) == (9, (3.0, 6.0))


def test_deeper_networks_are_cut_to_the_depth_asked_for():
    rows = plan(STUDIES["table3"].results, Settings(seeds=1, depth=60))
    found = {(r.key, run.recipe.spec(10).depth, run.recipe.spec(10).unit) for r, (run,) in rows}
    assert ("resnet110/single", 59, "single") in found
    assert ("preact110", 56, "basic") in found
    assert ("preact1001", 56, "bottleneck") in found
    with pytest.raises(UserError, match="--depth 9 leaves nothing of resnet164; 11 is the least"):
        plan(STUDIES["table2"].results, Settings(depth=9))


# -- Made-up outcomes ------------------------------------------------------------------------------


def made_up(run: Planned, errors, diverged=False):
    """Writes the run that ended with these errors, epoch by epoch."""
    run.folder.mkdir(parents=True)
    lines = [
        {"epoch": epoch, "step": 23 * epoch, "lr": 0.1, "train_loss": 2 / epoch,
         "train_error": error / 2, "test_loss": 1.0, "test_error": error,
         "images_per_second": 100.0, "seconds": 2.0}
        for epoch, error in enumerate(errors, 1)
    ]  # fmt: skip
    if diverged:
        lines.append({"step": 23 * len(errors) + 1, "lr": 0.1, "loss": math.nan, "diverged": "nan"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.folder / "metrics.jsonl").write_text(text, encoding="utf-8")


def rows_of(name, errors, tmp_path, keys=None):
    """Rows with made-up errors: a list for the seeds of each."""
    results = [r for r in STUDIES[name].results if keys is None or r.key in keys]
    settings = Settings(seeds=len(errors[0]), budget=2, output=str(tmp_path))
    rows = []
    for (result, runs), last in zip(STUDIES[name].plan(results, settings), errors):
        for run, error in zip(runs, last):
            if not run.folder.exists():
                made_up(run, [90.0] if error == FAIL else [90.0, error], error == FAIL)
        rows.append(Row(result, runs, [run.outcome() for run in runs]))
    return rows


def test_a_run_is_done_after_its_last_epoch(tmp_path):
    ((_, runs),) = plan(STUDIES["table1"].results[:1], Settings(budget=2, output=str(tmp_path)))
    assert runs[0].outcome() is None
    made_up(runs[0], [50.0])
    assert runs[0].outcome() is None
    made_up(runs[1], [50.0, 7.5])
    assert (runs[1].outcome().error, runs[1].outcome().seconds) == (7.5, 4.0)
    made_up(runs[2], [50.0], diverged=True)
    assert runs[2].outcome() == Outcome(FAIL, runs[2].outcome().epochs)


def test_rank_correlation_ties_fails_and_takes_both_ends_of_a_range(tmp_path):
    # Of the paper's order, the first two rows change places; the last bias of a range is best.
    ours = [[2.0], [50.0], [FAIL], [6.0], [80.0], [0.5], [3.0], [4.0], [7.0], [1.0], [5.0], [90.0]]
    found = rank_correlations(rows_of("table1", ours, tmp_path))
    paper = [1, 9.5, 9.5, 6, 9.5, 3, 4, 7, 2, 5, 9.5]
    first = [2, 9.5, 9.5, 6, 9.5, 3, 4, 7, 1, 5, 9.5]
    last = [3, 10, 10, 7, 1, 4, 5, 8, 2, 6, 10]
    assert found == pytest.approx([np.corrcoef(paper, ranks)[0, 1] for ranks in (first, last)])
    keys = [f"resnet110/{shortcut}" for shortcut in ("identity", "plain", "conv1x1")]
    without = [row for row in rows_of("table1", ours, tmp_path) if row.result.key in keys]
    assert rank_correlations(without) == [1.0]


def test_rows_that_contradict_the_paper_are_named(tmp_path):
    # The paper: 6.61, fail, fail, 12.35.
    found = contradictions(rows_of("table1", [[2.0], [90.0], [3.0], [21.0]], tmp_path / "two"))
    assert found == [
        "Against the paper: constant scaling 0.5, 1 (2b): fails there, not here. "
        "constant scaling 0.5, 0.5 (2b): fails here, not there."
    ]
    assert contradictions(rows_of("table1", [[2.0], [FAIL]], tmp_path / "none")) == []


def test_the_table_has_every_seed_their_median_mean_and_deviation(tmp_path):
    rows = rows_of("table1", [[6.0, 9.0, 7.5], [25.0, FAIL, 30.0]], tmp_path)
    table = errors_table(rows)
    assert table.head[:5] == ("case", "network", "paper (CIFAR-10)", "ours", "mean ± sd")
    assert table.head[5:] == ("seed 0", "seed 1", "seed 2")
    network = "resnet56 for resnet110"
    assert table.rows[0][1:] == (network, "6.61", "7.50", "7.50 ± 1.50", "6.00", "9.00", "7.50")
    assert table.rows[1][2:] == ("fail", "30.00 (fail)", "-", "25.00", "diverged", "30.00")


def test_sentences_say_what_came_out(tmp_path):
    keys = [r.key for r in STUDIES["table2"].results if "110" in r.model]
    good = [[2.0, 3.0], [9.0, 9.0], [4.0, 4.0], [3.0, 3.0], [2.4, 3.2]]
    section = STUDIES["table2"].section(
        rows_of("table2", good, tmp_path / "good", keys), Settings()
    )
    text = " ".join(part for part in section.parts if isinstance(part, str))
    assert "the largest 9.00 % (BN after addition (4b))" in text
    assert "0.30 points above the best, within its standard deviation of 0.57" in text
    bad = [[2.0, 3.0], [9.0, 9.0], [4.0, 4.0], [3.0, 3.0], [11.0, 11.1]]
    section = STUDIES["table2"].section(rows_of("table2", bad, tmp_path / "bad", keys), Settings())
    text = " ".join(part for part in section.parts if isinstance(part, str))
    assert "(full pre-activation (4e))" in text
    assert "8.55 points above the best, not within its standard deviation" in text


@pytest.mark.parametrize("epochs", [[], [90.0]])
def test_rows_that_diverge_at_once_are_drawn_and_told(epochs, tmp_path):
    keys = ["resnet110/identity", "resnet110/gate:-6"]
    rows = []
    chosen = [r for r in STUDIES["table1"].results if r.key in keys]
    for result, (run,) in STUDIES["table1"].plan(chosen, Settings(seeds=1, output=str(tmp_path))):
        made_up(run, epochs, diverged=True)
        text = (
            (run.folder / "metrics.jsonl")
            .read_text()
            .replace('"train_loss": 2.0', '"train_loss": Infinity')
        )
        (run.folder / "metrics.jsonl").write_text(text)
        rows.append(Row(result, [run], [run.outcome()]))
    section = STUDIES["table1"].section(rows, Settings())
    report.write([section], [], tmp_path)
    assert (tmp_path / "report.md").read_text().count("| diverged |") == 4


def test_estimates_count_operations_and_multiply_adds():
    spec = named("resnet20")
    ((_, (run,)),) = plan(STUDIES["table1"].results[:1], Settings(seeds=1, depth=20, budget=10))
    # 9 units of conv bn relu conv bn, an addition, relu: 7 operations; 230 steps of 64 images,
    # and 360 images tested for each 1437 trained, at a third of the cost.
    step = 9 * 7 * 1e-3 + 64 * spec.multiply_adds(8) * 1e-9
    expected = 230 * (1 + 360 / 1437 / 3) * step
    assert seconds(run, Speed(1e-3, 1e-9)) - seconds(run, Speed(0, 0)) == pytest.approx(expected)


@pytest.mark.parametrize("engine", ["auto", "mxnet"])
def test_what_is_timed_is_the_engine_that_runs_would_take(engine, monkeypatch):
    taken = set()

    class Noting(Step):
        def __init__(self, net, trainer, recipe, devices):
            super().__init__(net, trainer, recipe, devices)
            taken.add(recipe.engine)

    monkeypatch.setattr("gluon_resnetv2.training.step.Step", Noting)
    speed = measure(False, engine, None)
    assert taken == {"mxnet" if engine == "mxnet" or choice.native_library()[1] else "native"}
    assert 1e-12 < speed.multiply_add < 1e-7


def test_devices_are_shared_out():
    assert slots((0, 1, 2, 3), 2, None)[0].gpus == (0, 1)
    assert [slot.gpus for slot in slots((4, 5, 6), 1, None)] == [(4,), (5,), (6,)]
    assert slots(None, 1, 3) == [Slot(None, max(1, os.cpu_count() // 3))] * 3
    with pytest.raises(UserError, match="--gpus-per-run 3 is more than the 2 of --gpus"):
        slots((0, 1), 3, None)


# -- The command -----------------------------------------------------------------------------------

TINY = (
    *("study", "table1", "--rows", "identity", "gate:-6", "--depth", "8", "--budget", "3"),
    *("--seeds", "2"),
)
WITHOUT_TIME = re.compile(r"^(Written on|\d+ runs, ).*$", re.MULTILINE)


def study(*words, folder, status=0):
    """Runs the command; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "gluon_resnetv2", *words, "--output", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a study in peace, and what was printed."""
    folder = tmp_path_factory.mktemp("study") / "tiny"
    return folder, study(*TINY, folder=folder)


def reported(folder):
    return WITHOUT_TIME.sub("", (folder / "report.md").read_text(encoding="utf-8"))


def test_a_study_trains_and_reports(finished):
    folder, printed = finished
    assert "0 of 4 runs are done; 4 to train" in printed
    assert re.search(r"4/4  resnet8.*, seed \d: \d+\.\d\d %, \d+ s\n", printed)
    assert f"report: {folder}/report.html" in printed
    assert len(list((folder / "runs").glob("*/recipe.json"))) == 4


def test_every_error_in_the_report_is_in_a_runs_metrics(finished):
    folder, _ = finished
    rows = [line.strip("| ").split(" | ") for line in reported(folder).splitlines() if "|" in line]
    body = [row for row in rows if row[1].startswith("resnet8")]
    assert len(body) == 2
    recorded = []
    for path in (folder / "runs").glob("*/metrics.jsonl"):
        last = json.loads(path.read_text().splitlines()[-1])
        recorded.append(f"{last['test_error']:.2f}")
    assert sorted(cell for row in body for cell in row[-2:]) == sorted(recorded)


def test_the_page_needs_nothing_from_elsewhere(finished):
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == page.count('src="data:image/svg+xml;base64,') == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)


def test_a_finished_study_trains_nothing_and_reports_the_same(finished):
    folder, _ = finished
    before = reported(folder), (folder / "figures" / "table1-curves.svg").read_bytes()
    page = (folder / "report.html").read_text(encoding="utf-8")
    printed = study(*TINY, folder=folder)
    assert printed == f"report: {folder}/report.html\n"
    assert (reported(folder), (folder / "figures" / "table1-curves.svg").read_bytes()) == before
    assert (folder / "report.html").read_text(encoding="utf-8") == page
    assert (
        study(*TINY, "--dry-run", folder=folder).count("done: python -m gluon_resnetv2 train") == 4
    )


def test_the_committed_report_is_what_the_committed_records_give(digits_study, capsys, monkeypatch):
    committed = ROOT / "docs" / "digits"
    monkeypatch.setattr(report, "_svg", lambda picture: b"")  # whose drawing takes half a minute
    words = ["study", "all", "--output", str(digits_study)]
    options = commands.parser(words).parse_args(words)
    assert options.action(options) == 0
    assert "to train" not in capsys.readouterr().out  # which would take an hour
    texts = [(folder / "report.md").read_text("utf-8") for folder in (digits_study, committed)]
    found, expected = (re.sub(r"^Written on .*$", "", text, flags=re.M) for text in texts)
    assert found == expected
    figures = {path.name for path in (committed / "figures").iterdir()}
    assert {path.name for path in (digits_study / "figures").iterdir()} == figures


@pytest.mark.slow  # a minute and a half
def test_a_study_that_was_stopped_goes_on_to_the_same_report(finished, tmp_path):
    """Once it is told to end, once it is killed, each time in the middle of a run."""
    folder = tmp_path / "stopped"
    command = [sys.executable, "-m", "gluon_resnetv2", *TINY, "--output", str(folder)]
    for how in (signal.SIGTERM, signal.SIGKILL):
        before = set((folder / "runs").glob("*/checkpoints/step-*"))
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not set((folder / "runs").glob("*/checkpoints/step-*")) - before:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(how)
        printed, _ = process.communicate(timeout=120)
        if how != signal.SIGKILL:
            assert process.returncode == 3
            assert printed.endswith("stopped; the same command goes on\n")
        assert not (folder / "report.md").exists()
    study(*TINY, folder=folder)
    assert reported(folder) == reported(finished[0])


def test_a_run_that_ends_well_and_has_no_outcome_has_failed(monkeypatch, tmp_path):
    ((_, runs),) = plan(STUDIES["table1"].results[:1], Settings(seeds=1, output=str(tmp_path)))
    runs[0].folder.parent.mkdir()
    runs[0].folder.with_name(f"{runs[0].folder.name}.log").write_text("done\n")
    monkeypatch.setattr(runner, "_start", lambda *_: subprocess.Popen([sys.executable, "-c", ""]))
    with pytest.raises(UserError, match=r"/.*\.log\)$"):
        runner.execute(runs, [Slot(None, 1)], dict.fromkeys(runs, 1.0))


def test_the_report_names_a_machine_of_which_proc_has_no_model(monkeypatch):
    arm = SimpleNamespace(read_text=lambda: "processor\t: 0\nCPU implementer\t: 0x41\n")
    monkeypatch.setattr(main, "Path", lambda path: arm)
    assert f"({platform.processor() or platform.machine()})" in main._machine()


@pytest.mark.slow  # a quarter of a minute
def test_a_study_can_be_stopped_at_its_start(tmp_path):
    command = [sys.executable, "-m", "gluon_resnetv2", *TINY, "--output", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any((tmp_path / "runs").glob("*.log")):  # its processes begin to import
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert (process.returncode, printed.splitlines()[-1]) == (
        *(3, "stopped; the same command goes on"),
    )


@pytest.mark.slow  # half a minute
def test_a_run_that_diverges_is_an_outcome(tmp_path):
    words = (
        "study",
        "table1",
        "--rows",
        "identity",
        "--depth",
        "8",
        "--budget",
        "1",
        "--seeds",
        "1",
    )
    printed = study(*words, "--dry-run", folder=tmp_path)
    folder = Path(re.search(r"--output (\S+)", printed)[1])
    made_up(Planned(Recipe(output=str(folder))), [50.0], diverged=True)
    study(*words, folder=tmp_path)
    assert "| diverged |" in reported(tmp_path)


@pytest.mark.slow  # half a minute
def test_a_run_that_fails_is_named(tmp_path):
    words = ("study", "table1", "--rows", "plain", "--depth", "8", "--budget", "1", "--seeds", "1")
    printed = study(*words, "--dry-run", folder=tmp_path)
    folder = Path(re.search(r"--output (\S+)", printed)[1])
    folder.parent.mkdir(parents=True)
    folder.write_text("in the way")
    printed = study(*words, folder=tmp_path, status=2)
    assert re.search(rf"error: {folder.name}: .* exists already; .*\(see .*\.log\)\n", printed)
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("study",), "name a study: table1, "),
        (("study", "table9"), "no study 'table9'; choose table1, "),
        (("study", "table1", "--rows", "nope"), "no row nope there; see: study --list"),
        (("study", "table1", "--gpus", "a"), "invalid N,N,... value: 'a'"),
        (("study", "table1", "--seeds", "0"), "--seeds must be at least 1, not 0"),
        (("study", "table5"), "error: --data-dir is missing: ImageNet's folder"),
        (("study", "table5", "--dataset", "cifar10"), "is of ImageNet; leave out --dataset"),
        (("study", "table1", "--dataset", "mnist"), "invalid choice: 'mnist'"),
        (("study", "table1", "--gpus", "0"), "error: GPU 0 cannot be used"),
    ],
)
def test_mistakes_are_told_in_one_line(words, message, tmp_path):
    printed = study(*words, folder=tmp_path / "none", status=2)
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_imagenet_rows_are_trained_once_and_tested_at_their_crops(tmp_path):
    make_tree(tmp_path / "data")
    words = ("study", "table5", "--rows", "resnet152", "--budget", "1")
    words += ("--data-dir", str(tmp_path / "data"), "--seeds", "1")
    study(*words, folder=tmp_path / "out")
    (folder,) = (tmp_path / "out" / "runs").glob("*/recipe.json")
    records = read_metrics(folder.parent)
    tested = {r["test_size"]: r["test_error"] for r in records if "test_size" in r}
    assert set(tested) == {224, 320}
    for size, error in tested.items():
        crop = ("evaluate", str(folder.parent), "--size", str(size))
        done = subprocess.run(
            [sys.executable, "-m", "gluon_resnetv2", *crop],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert f"error {error:.2f} %" in done.stdout
        assert f"| {error:.2f} |" in reported(tmp_path / "out")
