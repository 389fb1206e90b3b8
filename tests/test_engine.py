"""What --engine auto takes: the native engine where it can and is right, and never otherwise."""

from __future__ import annotations

import json
from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2.checkpoint import State, checkpoints
from gluon_resnetv2.distributed.workers import Workers
from gluon_resnetv2.engines import choice, runners
from gluon_resnetv2.engines.predictor import Predictor
from gluon_resnetv2.engines.runners import Fused, Native, Plain
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports.export import export
from gluon_resnetv2.exports.verify import report
from gluon_resnetv2.formats.artifact import load
from gluon_resnetv2.net import ResNetV2, get_model
from gluon_resnetv2.spec import named
from gluon_resnetv2.training import engine
from gluon_resnetv2.training.evaluation import evaluate_source
from gluon_resnetv2.training.main import train_network
from gluon_resnetv2.training.recipe import Recipe
from gluon_resnetv2.training.run import read_metrics
from tests.common import randomise, skip_unless_installed, skip_without

NO_COMPILER = "the native engine needs a C++ compiler, and there is no g++; install g++, or set CXX"
SHAPE = (3, 16, 16)


@pytest.fixture
def without(monkeypatch):
    """A machine where the native operator can't be compiled."""
    monkeypatch.setattr(choice, "native_library", lambda: ("", NO_COMPILER))


@pytest.fixture
def installed():
    skip_unless_installed()


def network(**switches):
    net = get_model("preact8", unit="basic", **switches)
    randomise(net)
    net.hybridize()
    return net


def chosen(recipe, net=None, workers=None, begun=None):
    return engine.choose(recipe, net or network(), SHAPE, workers or Workers("device"), begun)


# -- In training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_takes_the_native_engine_where_it_can(installed, dtype):
    net = ResNetV2(named("preact8", unit="basic"), dtype=dtype)
    randomise(net)
    taken, lines = chosen(Recipe(dtype=dtype), net)
    assert (taken, lines[0]) == ("native", "engine native")


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ({"gpus": (0,)}, "--gpus is for MXNet's graph alone"),
        ({"recompute": "auto"}, "--recompute is for MXNet's graph alone"),
        ({"sync_bn": True}, "--sync-bn is for MXNet's graph alone"),
        ({"freeze": 1, "init_from": "digits"}, "--freeze is for MXNet's graph alone"),
        ({"dtype": "float64"}, "native computes in float32 or bfloat16, not float64"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_training_goes_on_on_mxnets_graph_where_native_can_not(option, why):
    assert chosen(Recipe(**option))[1][0] == f"engine mxnet (not native: {why})"
    assert chosen(Recipe(engine="mxnet", **option))[1][0] == "engine mxnet"
    with pytest.raises(UserError, match=f"--engine native: {why}"):
        Recipe(engine="native", **option)


def test_what_is_missing_is_said(without):
    taken, lines = chosen(Recipe())
    assert (taken, lines[0]) == ("mxnet", f"engine mxnet (not native: {NO_COMPILER})")


def test_an_engine_that_computes_something_else_is_not_taken(installed, monkeypatch):
    right = choice.native_symbol
    monkeypatch.setattr(choice, "native_symbol", lambda *args: right(*args) * 1.1)
    taken, lines = chosen(Recipe())
    assert taken == "mxnet"
    assert "its logits are 0.1 of the largest off MXNet's" in lines[0]


@pytest.mark.parametrize(("factor", "taken"), [(1 + 1e-6, "native"), (1 + 1e-4, "mxnet")])
def test_as_much_as_rounding_changes_is_not_wrong(installed, monkeypatch, factor, taken):
    right = choice.native_symbol
    monkeypatch.setattr(choice, "native_symbol", lambda *args: right(*args) * factor)
    assert chosen(Recipe())[0] == taken


def test_a_network_without_finite_logits_is_asked_again(installed):
    """As one of a thousand layers is before its statistics are measured."""
    net = network()
    bias = net.output.bias.data()
    bias[:] = np.inf
    assert choice.native_fault(net, SHAPE) == (
        "MXNet's logits, which its are held against, are not finite"
    )
    bias[:] = 0
    assert choice.native_fault(net, SHAPE) == ""


def test_what_has_no_instruction_is_left_to_mxnet(installed, monkeypatch):
    def native_symbol(*args):
        raise UserError("the native engine has no sinh like that of x; use --engine mxnet")

    monkeypatch.setattr(choice, "native_symbol", native_symbol)
    assert "no sinh" in chosen(Recipe())[1][0]


def test_the_trial_leaves_the_network_as_it_is(installed):
    net = network()
    before = {name: p.data().asnumpy() for name, p in net.collect_params().items()}
    chosen(Recipe(), net)
    for name, p in net.collect_params().items():
        assert (p.data().asnumpy() == before[name]).all(), name


class Two(Workers):
    """Two workers, of which the other one lacks a compiler."""

    count = 2

    def __init__(self):
        super().__init__("device")

    def _gather(self, array):
        return np.stack([array, np.ones_like(array)])


def test_all_workers_take_the_same(installed):
    taken, lines = chosen(Recipe(), workers=Two())
    assert (taken, lines[0]) == ("mxnet", "engine mxnet (not native: another worker lacks it)")


def test_a_run_goes_on_as_it_began(installed):
    assert chosen(Recipe(), begun="mxnet")[1][0] == "engine mxnet (as before)"
    assert chosen(Recipe(), begun="native")[1][0] == "engine native"


def test_a_run_that_can_not_go_on_as_it_began_says_so(without):
    taken, lines = chosen(Recipe(), begun="native")
    assert taken == "mxnet"
    assert lines[0].endswith("; it was native before, so the bits will differ from here on")
    _, lines = chosen(Recipe(engine="native"), begun="mxnet")
    assert lines[0] == "engine native; it was mxnet before, so the bits will differ from here on"


def short(tmp_path, **more):
    settings = {"dataset": "digits", "model": "preact8", "unit": "basic", "num_steps": 3}
    return Recipe(**settings, batch_size=512, output=str(tmp_path / "run"), **more)


def test_run_and_checkpoint_say_what_was_taken(installed, tmp_path, capsys):
    recipe = short(tmp_path)
    train_network(recipe)
    folder = tmp_path / "run"
    assert json.loads((folder / "recipe.json").read_text())["engine"] == "auto"
    assert read_metrics(folder)[-1]["engine"] == "native"
    state = json.loads((checkpoints(folder)[-1] / "state.json").read_text())
    assert state["engine"] == "native"
    assert capsys.readouterr().out.count("engine native\n") == 1


def test_a_resumed_run_keeps_its_engine(installed, tmp_path, capsys):
    train_network(short(tmp_path, engine="mxnet"))
    train_network(replace(short(tmp_path), num_steps=6), resume=True)
    assert "engine mxnet (as before)\n" in capsys.readouterr().out


def test_a_checkpoint_of_a_version_without_auto_names_its_engine(tmp_path):
    train_network(short(tmp_path, engine="mxnet"))
    path = checkpoints(tmp_path / "run")[-1] / "state.json"
    values = json.loads(path.read_text())
    del values["engine"]
    assert State.from_dict(values).engine == "mxnet"
    values["recipe"]["engine"] = "native"
    assert State.from_dict(values).engine == "native"
    del values["recipe"]["engine"]
    assert State.from_dict(values).engine == "mxnet"


@pytest.mark.parametrize(("dtype", "first"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_two_engines_lose_alike_at_first(installed, tmp_path, dtype, first):
    """Rounding is all that sets them apart, and twenty steps magnify it a thousandfold."""
    skip_without(dtype)
    losses = []
    for name in ("mxnet", "native"):
        recipe = short(tmp_path / name, engine=name, dtype=dtype, log_every=1)
        train_network(replace(recipe, batch_size=64, num_steps=20))
        losses.append([r["loss"] for r in read_metrics(tmp_path / name / "run") if "loss" in r])
    assert losses[1][0] == pytest.approx(losses[0][0], rel=first)
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert len(losses[0]) == 20
    assert losses[0][-1] != pytest.approx(losses[0][0], rel=1e-2)


@pytest.mark.parametrize(
    ("flags", "native", "mxnet"),
    [
        ({"avx2"}, {"bfloat16": "no instructions"}, {"bfloat16": "no instructions"}),
        ({"avx512_bf16"}, {"float32": "twice as fast"}, {}),
        ({"avx512_bf16", "amx_bf16"}, {"float32": "twice as fast"}, {"bfloat16": "slower"}),
    ],
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else "",
)
def test_another_precision_is_hinted_at_where_it_is_faster(monkeypatch, flags, native, mxnet):
    monkeypatch.setattr(choice.machine, "cpu_flags", lambda: frozenset(flags))
    for name, expected in (("native", native), ("mxnet", mxnet)):
        for dtype in ("float32", "bfloat16"):
            hint = choice.precision_hint(name, dtype)
            assert (expected.get(dtype, "nothing") in hint) if dtype in expected else not hint


# -- What is remembered ----------------------------------------------------------------------------


def test_what_was_found_is_found_once():
    asked = []

    def find(answer):
        asked.append(answer)
        return {"answer": answer}

    assert choice.remembered(("a", 1), lambda: find(1)) == {"answer": 1}
    assert choice.remembered(("a", 1), lambda: find(2)) == {"answer": 1}
    assert choice.remembered(("a", 2), lambda: find(3)) == {"answer": 3}
    assert asked == [1, 3]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"{}", b'{"answer": [7]}'])
def test_a_damaged_memory_is_made_anew(content):
    choice.remembered(("a",), lambda: {"answer": 1})
    (path,) = choice.folder().iterdir()
    path.write_bytes(content)
    assert choice.remembered(("a",), lambda: {"answer": 2}) == {"answer": 2}
    assert choice.remembered(("a",), lambda: {"answer": 3}) == {"answer": 2}


def test_another_processor_is_asked_again(monkeypatch):
    choice.remembered(("a",), lambda: {"answer": 1})
    monkeypatch.setattr(choice.machine, "cpu_flags", lambda: frozenset({"other"}))
    assert choice.remembered(("a",), lambda: {"answer": 2}) == {"answer": 2}


def test_where_nothing_can_be_written_it_is_found_each_time(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(choice, "folder", lambda: tmp_path / "file" / "engines")
    assert choice.remembered(("a",), lambda: {"answer": 1}) == {"answer": 1}


def test_where_there_is_no_home_it_is_found_each_time(monkeypatch):
    def homeless():
        raise UserError("set HOME or XDG_CACHE_HOME")

    monkeypatch.setattr(choice, "folder", homeless)
    for answer in (1, 2):
        assert choice.remembered(("a",), lambda: {"answer": answer}) == {"answer": answer}  # noqa: B023


# -- In inference ----------------------------------------------------------------------------------


def export_to(folder, seed=0):
    net = get_model("preact8", unit="basic")
    randomise(net, seed)
    classes = [str(number) for number in range(10)]
    return export(net, folder, SHAPE, classes=classes, mean=[120] * 3, std=[60] * 3)


@pytest.fixture
def exported(tmp_path):
    return export_to(tmp_path / "export")


def take(monkeypatch, fastest):
    """Has one runner take the least time."""

    def milliseconds(found, _shape):
        return {one.name: 1.0 if one.name == fastest.name else 2.0 for one in found}

    monkeypatch.setattr(runners, "_milliseconds", milliseconds)


@pytest.mark.parametrize("fastest", [Plain, Fused, Native])
def test_the_fastest_right_runner_is_taken(installed, exported, monkeypatch, fastest):
    take(monkeypatch, fastest)
    predictor = Predictor(exported)
    assert predictor.form == f"float32, {fastest.name}"
    assert predictor.engine == ("native" if fastest is Native else "mxnet")
    slower = [] if fastest is Native else ["it takes 2 ms, and this one 1"]
    assert predictor.without == slower
    images = np.random.RandomState(1).normal(size=(3, *SHAPE)).astype("float32")
    expected = Predictor(exported, engine="mxnet").run(images)
    np.testing.assert_allclose(predictor.run(images), expected, rtol=1e-4, atol=1e-5)


def test_what_is_wrong_is_not_taken_however_fast(installed, exported, monkeypatch):
    take(monkeypatch, Native)
    right = Native.run
    monkeypatch.setattr(Native, "run", lambda self, inputs: right(self, inputs) * 1.01)
    predictor = Predictor(exported)
    assert predictor.engine == "mxnet"
    assert [line.split()[:2] for line in predictor.rejected] == [["FAILED", "native"]]
    with pytest.raises(UserError, match="does not compute here what was exported: FAILED  native"):
        Predictor(exported, engine="native")


def test_a_predictor_does_not_try_again_what_it_knows(installed, exported, monkeypatch):
    first = Predictor(exported)

    def fail(*_):
        raise AssertionError("tried again")

    monkeypatch.setattr(runners.Runners, "_compare", fail)
    assert Predictor(exported).form == first.form
    with pytest.raises(AssertionError, match="tried again"):
        Predictor(exported, engine="mxnet")


def test_other_weights_are_tried(installed, exported, monkeypatch, tmp_path):
    Predictor(exported)
    other = export_to(tmp_path / "other", seed=1)
    asked = []
    compare = runners.Runners._compare
    monkeypatch.setattr(runners.Runners, "_compare", lambda *a: asked.append(a) or compare(*a))
    Predictor(other)
    assert len(asked) == 1


def test_a_predictor_says_what_is_missing(without, exported, monkeypatch):
    def unavailable(*_):
        raise UserError(NO_COMPILER)

    monkeypatch.setattr(Native, "__init__", unavailable)
    predictor = Predictor(exported)
    assert predictor.about.startswith("engine mxnet, float32, ")
    assert predictor.about.endswith(f" (not native: {NO_COMPILER})")


def test_verify_runs_every_engine_that_is_there(installed, exported, capsys):
    assert report(exported)
    assert "ok      native engine" in capsys.readouterr().out
    assert report(load(exported.folder), engine="mxnet")
    assert "native engine" not in capsys.readouterr().out


def test_verify_says_which_it_leaves_out(without, exported, capsys):
    assert report(exported)
    assert f"left out: native engine: {NO_COMPILER}\n" in capsys.readouterr().out


# -- In evaluation ---------------------------------------------------------------------------------


def test_every_engine_evaluates_to_the_same(installed, tmp_path):
    train_network(short(tmp_path))
    run = tmp_path / "run"
    found = {one: evaluate_source(run, [mx.cpu()], engine=one) for one in ("mxnet", "native")}
    found["auto"] = evaluate_source(run, [mx.cpu()])
    assert {one: values.pop("engine") for one, values in found.items()} == {
        **{"mxnet": "mxnet", "native": "native"},
        "auto": "native",
    }
    assert found["auto"] == found["native"]
    assert found["native"]["error"] == found["mxnet"]["error"]
    assert found["native"]["loss"] == pytest.approx(found["mxnet"]["loss"], rel=1e-5)


def test_evaluation_says_why_it_is_not_native(without, tmp_path):
    train_network(short(tmp_path))
    run = tmp_path / "run"
    assert evaluate_source(run, [mx.cpu()])["engine"] == f"mxnet (not native: {NO_COMPILER})"
    with pytest.raises(UserError, match="--engine native: the native engine needs a C"):
        evaluate_source(run, [mx.cpu()], engine="native")
