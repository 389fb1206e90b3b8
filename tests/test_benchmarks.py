"""The comparisons' arithmetic and their page, from rounds written by hand."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from benchmarks import inference, rounds, training
from benchmarks.__main__ import report, summary
from benchmarks.peers import LIMITS
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import write_json

ROOT = Path(__file__).resolve().parents[1]
SPEEDS = {"base": [10.0, 20.0, 40.0], "ours": [30.0, 50.0, 44.0], "other": [5.0, 5.0, 5.0]}


def test_more_is_better():
    found = rounds.case("a case", "images/s", SPEEDS, ["base", "other", "absent"], {})
    ours = found["ways"]["ours"]
    assert ours["rounds"] == [30, 50, 44]
    assert (ours["median"], ours["range"]) == (44, [30, 50])
    # 30 / 10, 50 / 20, 44 / 40: not the ratio of the medians, which is 2.2.
    assert ours["ratios"]["base"] == {"median": 2.5, "range": [1.1, 3.0]}
    assert ours["ratios"]["other"] == {"median": 8.8, "range": [6.0, 10.0]}
    assert found["ways"]["base"]["ratios"]["base"] == {"median": 1.0, "range": [1.0, 1.0]}
    assert list(ours["ratios"]) == ["base", "other"]


@pytest.mark.parametrize("unit", ["s", "MB", "ms"])
def test_less_is_better(unit):
    ours = rounds.case("a case", unit, SPEEDS, ["base"], {})["ways"]["ours"]
    # 10 / 30, 20 / 50, 40 / 44.
    assert ours["ratios"]["base"]["median"] == pytest.approx(0.4)
    assert ours["ratios"]["base"]["range"] == pytest.approx([1 / 3, 10 / 11])


def test_ways_take_turns_and_one_that_fails_is_left_out():
    calls = []

    def measure(way):
        calls.append(way)
        if way == "absent":
            raise ModuleNotFoundError("No module named 'absent'")
        if calls.count("breaks") == 2 and way == "breaks":
            raise RuntimeError("out of\nmemory")
        return len(calls)

    found, left_out = rounds.alternate(["a", "absent", "breaks", "b"], 3, measure)
    assert calls == ["a", "absent", "breaks", "b", "a", "breaks", "b", "a", "b"]
    assert found == {"a": [1, 5, 8], "b": [4, 7, 9]}
    assert left_out == {
        "absent": "ModuleNotFoundError: No module named 'absent'",
        "breaks": "RuntimeError: memory",
    }


def test_a_median_of_calls():
    calls = []
    seconds = rounds.median_seconds(
        lambda: calls.append("call"), 0, 2, before=lambda: calls.append("before")
    )
    assert calls == ["before", "call"] * 5  # 2 that warm up, and 3 at least
    assert 0 <= seconds < 0.1


def document(**changed):
    left_out = {"absent": "ModuleNotFoundError: No module named 'absent'"}
    one = rounds.case("preact20", "s", SPEEDS, ["base"], left_out, {"ours": 0.0025})
    about = {"title": "Start-up.", "method": "How.", "machine": "A processor, 2 CPUs; mxnet 1.9.1"}
    return {**about, "threads": 2, "rounds": 3, "load": 0.25, "cases": [one], **changed}


def test_the_page_has_what_the_json_says(tmp_path):
    write_json(tmp_path / "startup.json", document())
    write_json(tmp_path / "updates.json", document(title="Updates", machine="Another", rounds=1))
    report(tmp_path)
    page = (tmp_path / "README.md").read_text()
    for line in (
        "- startup: A processor, 2 CPUs; mxnet 1.9.1",
        "- updates: Another",
        "## Start-up",
        "Threads: 2; n = 3; load 0.2 before it began.",
        "Threads: 2; n = 1; load 0.2 before it began.",
        "![startup](startup.png)",
        "|  | s | range | ratio to base | difference |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| base | 20 | 10-40 | 1.00 (1.00-1.00) |  |",
        "| ours | 44 | 30-50 | 0.40 (0.33-0.91) | 2.5e-03 |",
        "| other | 5 | 5-5 | 4.00 (2.00-8.00) |  |",
        "left out: absent (ModuleNotFoundError: No module named 'absent')",
    ):
        assert line in page.splitlines()
    assert page.index("## Start-up") < page.index("## Updates")
    for name in ("startup", "updates"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("load", "mark"), [(0.4, ""), (1.5, "*")])
def test_ratios_from_a_loaded_machine_are_marked(monkeypatch, capsys, tmp_path, load, mark):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("os.getloadavg", lambda: (load, 9.0, 9.0))
    (case,) = document()["cases"]
    options = argparse.Namespace(rounds=3, threads=1, output=str(tmp_path / "startup"))
    rounds.compare("Start-up.", options, [case])
    printed, warned = capsys.readouterr()
    assert warned.startswith("warning: load 1.5 before we begin") if mark else not warned
    (written,) = json.loads((tmp_path / "startup.json").read_text())["cases"]
    assert written == {**case, "loaded": bool(mark)}
    report(tmp_path)
    for text in (printed, (tmp_path / "README.md").read_text()):
        assert f"0.40{mark} (0.33-0.91)" in text
        assert ("ratios are marked *" in text) == bool(mark)


def test_the_summary_has_our_best_way_and_in_training_our_float32(tmp_path):
    speeds = {
        "GluonCV": [10.0, 20.0, 30.0],
        "PyTorch eager": [5.0, 5.0, 5.0],
        "OpenVINO bfloat16": [60.0, 60.0, 60.0],
        "ours native float32": [15.0, 25.0, 36.0],
        "ours native bfloat16": [30.0, 50.0, 60.0],
    }
    for name in ("training", "inference"):
        bases = ["GluonCV", "PyTorch eager", "OpenVINO bfloat16"]
        one = rounds.case("preact20", "images/s", speeds, bases, {})
        write_json(tmp_path / f"{name}.json", document(cases=[one]))
    best = "| preact20, native bfloat16 | 2.50 | 10.00 |  |  | 0.83 |  |"
    assert summary(tmp_path).splitlines()[2:] == [
        *(best, "| preact20, native float32 | 1.25 | 5.00 |  |  | 0.42 |  |"),
        best,
    ]


def test_the_readme_says_what_was_measured():
    folders = [ROOT / "docs" / "benchmarks", ROOT / "docs" / "benchmarks" / "epyc"]
    readme = (ROOT / "README.md").read_text()
    told = re.findall(r"^\| (preact.*), ([^,]*) \| (.*) \| (.*) \|$", readme, re.MULTILINE)
    assert len(told) == 4
    for title, way, *columns in told:
        name = "training" if "training" in title else "inference"
        for folder, given in zip(folders, columns):
            (case,) = (
                c for c in rounds.read(folder / f"{name}.json")["cases"] if c["title"] == title
            )
            ours = case["ways"].get(f"ours native {way}") or case["ways"][f"ours {way}"]
            assert given == ", ".join(
                rounds.ratio(case, ours["ratios"][base]) for base in ("GluonCV", "PyTorch eager")
            )
    text = " ".join(readme.split())
    ranges = []
    for precision in ("bfloat16", "int8"):
        against = [
            case["ways"][f"ours native {precision}"]["ratios"][f"OpenVINO {precision}"]["median"]
            for case in rounds.read(folders[1] / "inference.json")["cases"]
        ]
        assert len(against) == 6
        ranges.append(f"{min(against):.2f} to {max(against):.2f}")
    assert "{} of its speed in bfloat16 and {} in int8 on the EPYC".format(*ranges) in text
    rows = [row.split("|")[-3] for row in summary(folders[0]).splitlines() if "inference" in row]
    assert all(float(cell.strip(" *")) < 1 for cell in rows)
    assert "on the Xeon, OpenVINO was ahead in each case" in text


def test_a_matrix_product_bounds_what_multiplies_and_adds(monkeypatch):
    """ResNet-20 takes 40.8 million multiply-adds an image, in training three times as many."""
    monkeypatch.setattr(training, "multiply_adds", lambda way: 100e9)
    monkeypatch.setattr(inference, "multiply_adds", lambda way: 100e9)
    (way, *_) = LIMITS
    found = training.measure(way, "preact20", 64, 32, 1)
    assert found == pytest.approx(100e9 / (3 * 40.8e6), rel=0.01)
    shape = (64, 3, 32, 32)
    found, _ = inference.measure(way, "preact20", Path(), 2, shape, 1)
    assert found == pytest.approx(100e9 / 40.8e6, rel=0.01)


def test_a_table_of_nothing_but_failures(tmp_path):
    nothing = rounds.case("a case", "s", {}, ["base"], {"base": "OSError: no"})
    assert rounds.text(nothing).splitlines()[-1] == "left out: base (OSError: no)"
    rounds.draw([nothing], tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize("content", ["{", "[]", '{"title": "Start-up"}'])
def test_a_page_of_something_else(tmp_path, content):
    (tmp_path / "startup.json").write_text(content)
    with pytest.raises(UserError, match=r"startup\.json is no comparison of ours"):
        report(tmp_path)


def test_a_page_of_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"has none of training\.json, inference\.json"):
        report(tmp_path)
