"""What is served is what was trained: artifacts, their verification, and predictions."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from gluon_resnetv2.checkpoint import load_parameters, save_parameters
from gluon_resnetv2.engines import choice, forms, runners
from gluon_resnetv2.engines.predictor import Predictor
from gluon_resnetv2.engines.reference import Check, reference_images
from gluon_resnetv2.engines.runtimes import module, predictor, simple_bind, symbol_block
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.exports import verify as verification
from gluon_resnetv2.exports.export import Form, export
from gluon_resnetv2.exports.verify import AT_EXPORT, PLAIN, RUNTIMES, explain, report, verify
from gluon_resnetv2.files import whole_folder
from gluon_resnetv2.formats import artifact as artifact_module
from gluon_resnetv2.formats.artifact import load
from gluon_resnetv2.formats.manifest import write_manifest
from gluon_resnetv2.interop import source as sources
from gluon_resnetv2.net import ResNetV2, get_model
from gluon_resnetv2.spec import named
from tests.common import difference, randomise, with_new_sums
from tests.mutations import mutants
from tests.test_net import VARIANTS, variant

INPUT = {"mean": (120.0, 110.0, 100.0), "std": (60.0, 50.0, 40.0), "crop": 1.0}
CLASSES = [f"class {i}" for i in range(10)]


def exported(spec, folder, size=16, fused=False):
    net = ResNetV2(spec)
    randomise(net)
    if spec.depth > 1000:  # whose values would grow beyond float32 from unit to unit
        for parameter in net.collect_params(".*conv.*weight").values():
            parameter.set_data(parameter.data() / 2)
    classes = [f"class {i}" for i in range(spec.classes)]
    about = {key: INPUT[key][: spec.in_channels] for key in ("mean", "std")}
    shape = (spec.in_channels, size, size)
    return export(net, folder, shape, classes=classes, form=Form(fused=fused), **about)


def thin(model, **switches):
    """The named network with a quarter of its channels."""
    spec = named(model, **switches)
    return replace(spec, channels=tuple(channels // 4 for channels in spec.channels))


SPECS = {
    **{
        f"{order}, {shortcut}, {unit}": (variant(order, shortcut, unit), 16)
        for order, shortcut, unit in VARIANTS
    },
    **{
        f"preact14, widening {option}": (named("preact14", widening=option), 16) for option in "ABC"
    },
    "preact20": (named("preact20"), 32),
    "resnet29": (named("resnet29"), 32),
    "input BN": (named("preact8", unit="basic", input_bn="shift"), 16),
    "grey": (named("preact8", unit="basic", in_channels=1), 28),
    "both activations": (thin("preact18", first_activation="both", project_first=True), 64),
    "preact18": (thin("preact18"), 64),
    "preact50": (thin("preact50"), 64),
}
FUSED = {"fused preact20": (named("preact20"), 32), "fused preact50": (thin("preact50"), 64)}


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    """The checks of every export, by name."""
    folder = tmp_path_factory.mktemp("exports")
    artifacts = [
        exported(spec, folder / str(index), size)
        for index, (spec, size) in enumerate(SPECS.values())
    ]
    artifacts += [
        exported(spec, folder / name, size, fused=True) for name, (spec, size) in FUSED.items()
    ]
    return dict(zip([*SPECS, *FUSED], verify(artifacts)))


@pytest.mark.parametrize("name", [*SPECS, *FUSED])
def test_every_runtime_gives_what_the_training_graph_gives(checks, name):
    expected = [f"{way}, no fusion" if backend else way for way, backend in RUNTIMES]
    if not choice.native_library()[1]:
        expected.append("native engine")
    assert [check.runtime for check in checks[name]][1:] == expected
    assert not [str(check) for check in checks[name] if not check.passed]
    assert max(check.difference for check in checks[name]) <= 1e-5


DEEP = {
    **{f"{f}{d}": 32 for f in ("preact", "resnet", "plain") for d in (20, 32, 44, 56, 110)},
    **{f"{family}164": 32 for family in ("preact", "resnet")},
    "preact1001": 32,
    **{f"{f}{d}": 64 for f in ("preact", "resnet") for d in (18, 34, 50, 101, 152, 200, 269)},
}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "fused"])
def deep_checks(request, tmp_path_factory):
    """The checks of every named network, by name, exported plain or fused."""
    folder = tmp_path_factory.mktemp("deep")
    artifacts = [
        exported(named(name), folder / name, size, request.param) for name, size in DEEP.items()
    ]
    return dict(zip(DEEP, verify(artifacts)))


@pytest.mark.slow
@pytest.mark.parametrize("name", DEEP)
def test_every_named_network_is_verified(deep_checks, name):
    assert not [str(check) for check in deep_checks[name] if not check.passed]
    assert max(check.difference for check in deep_checks[name]) <= 1e-5


@pytest.fixture(scope="module")
def gluoncv_export(tmp_path_factory):
    """GluonCV's cifar_resnet20_v2 with statistics of a few batches, exported its own way."""
    model_zoo = pytest.importorskip("gluoncv.model_zoo", exc_type=ImportError)
    net = model_zoo.get_model("cifar_resnet20_v2", classes=10)
    mx.random.seed(0)
    net.initialize(mx.init.Xavier())
    net.hybridize()
    for _ in range(3):
        with autograd.record():
            net(mx.nd.random.normal(shape=(16, 3, 32, 32))).backward()
    mx.nd.waitall()
    net.export(str(tmp_path_factory.mktemp("gluoncv") / "cifar_resnet20_v2"))
    return load(tmp_path_factory.getbasetemp() / "gluoncv0")


def test_the_gluoncv_export_that_mxnet_computes_wrongly_is_caught(gluoncv_export, capsys):
    assert not report(gluoncv_export)
    printed = capsys.readouterr().out
    assert "NOT verified" in printed
    assert "folds" in printed
    assert "MXNET_SUBGRAPH_BACKEND=NONE" in printed
    failed = {line.split("  ")[2] for line in printed.splitlines() if "FAILED" in line}
    fused = {"Module", "simple_bind", "C predict API"}
    assert failed == fused


def test_the_cause_is_named_only_where_it_is_there(gluoncv_export, tmp_path):
    assert "conv0" in explain(gluoncv_export)
    assert explain(exported(named("preact20"), tmp_path / "export")) == ""


@pytest.fixture
def small(tmp_path):
    return exported(named("preact8", unit="basic"), tmp_path / "export")


@pytest.fixture
def without_native(monkeypatch):
    monkeypatch.setattr(verification, "without_native", lambda *_: "not here")


@pytest.fixture
def one_runtime(without_native, monkeypatch):
    monkeypatch.setattr(verification, "RUNTIMES", [("simple_bind", PLAIN)])


def replace_parameters(artifact):
    """The export with others of the same shapes, and a graph without its seal."""
    net = get_model("preact8", unit="basic")
    randomise(net, seed=1)
    save_parameters(net, artifact.params)
    artifact.symbol.write_text(net(mx.sym.var("data")).tojson())
    return with_new_sums(artifact)


def test_other_parameters_than_those_exported_are_found_out(small, one_runtime, capsys):
    """Even with a manifest that fits the files: the recorded logits do not."""
    small = replace_parameters(small)
    (found,) = verify([small])
    assert [check.passed for check in found] == [False, True]
    assert not report(small)
    assert "not those that were exported" in capsys.readouterr().out


def test_a_runtime_that_gives_no_answer_fails(small, without_native, monkeypatch):
    """And those that should follow it in its process have their answers."""
    runtimes = [(way, PLAIN) for way in ("simple_bind", "no such way", "Module")]
    monkeypatch.setattr(verification, "RUNTIMES", runtimes)
    (found,) = verify([small])
    assert [check.passed for check in found] == [True, True, False, True]
    assert str(found[2]).startswith("FAILED  no such way, no fusion")


def test_the_verdict_is_in_the_manifest(small, one_runtime):
    assert report(small)
    entries = load(small.folder).manifest.verification
    (entry,) = [entry for entry in entries if entry["runtime"] != AT_EXPORT]
    assert entry["runtime"] == "simple_bind, no fusion"
    assert entry["tolerance"] == {"difference": 1e-5}
    assert entry["passed"]
    assert entry["difference"] < 1e-5


def test_a_manifest_says_what_a_server_needs(small):
    manifest = small.manifest
    assert manifest.classes == tuple(CLASSES)
    assert manifest.output == "logits"
    assert manifest.input.shape == (3, 16, 16)
    assert manifest.input.mean == (120, 110, 100)
    assert manifest.spec.order == "full_preact"
    files = {"preact8-symbol.json", "preact8-0000.params", "manifest.json"}
    assert set(manifest.sha256) == files


@pytest.mark.parametrize("file", ["preact8-0000.params", "preact8-symbol.json"])
def test_a_changed_byte_is_refused(small, file):
    content = bytearray((small.folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (small.folder / file).write_bytes(content)
    with pytest.raises(UserError, match=file):
        load(small.folder)


def test_every_mutant_of_an_export_is_refused(small):
    """Whatever is done to one of its files, its SHA-256 differs."""
    symbol, params = small.symbol.read_bytes(), small.params.read_bytes()
    for mutant in mutants(symbol, params, 500):
        if (mutant.symbol, mutant.params) != (symbol, params):
            small.symbol.write_bytes(mutant.symbol)
            small.params.write_bytes(mutant.params)
            with pytest.raises(UserError, match="SHA-256"):
                load(small.folder)


DAMAGED = ["", "[]", "{}", '{"sha256": {}}', '{"sha256": 3}', "[" * 100_000]


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: content[:20])
def test_a_damaged_manifest_is_refused(small, content):
    (small.folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        load(small.folder)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("format", 1),
        ("classes", 7),
        ("classes", ["one", "two"]),
        ("classes", [0] * 10),
        ("input.shape", "abc"),
        ("input.shape", [3, 16]),
        ("input.shape", [3, -1, 16]),
        ("input.shape", [5, 16, 16]),
        ("input.shape", [3, 10**7, 10**7]),
        ("input.mean", None),
        ("input.mean", [0, 0]),
        ("input.std", [0, 0, 0]),
        ("input.std", [1, 1, float("nan")]),
        ("input.crop", 0),
        ("input.crop", 1e-6),
        ("input.values", "raw"),
        ("output", "classes"),
        ("precision", "int4"),
        ("precision", "int8"),
        ("fused", 1),
        ("tolerance", {"difference": 0.1}),
        ("tolerance", {"agreement": 0.5}),
        ("tolerance", {}),
        ("sha256", {}),
        ("name", "preact20"),
        ("input.name", "images"),
        ("input.layout", "NHWC"),
        ("input.colour", "BGR"),
        ("input.colour", "grey"),
        ("input.mean", [10**400, 0, 0]),
        ("input.mean", ["1", "2", "3"]),
        ("input.mean", [1e300] * 3),
        ("input.std", [1e-320] * 3),
        ("classes", ["\ud800"] * 10),
        ("sha256", ["preact8-symbol.json", "preact8-0000.params"]),
        ("spec.stages", [10**9, 1, 1]),
        ("spec.stages", ["a"]),
        ("spec.classes", 2**40),
        ("spec.shortcut", 5),
        ("reference.logits", "abc"),
        ("reference.logits", [[1.0]]),
    ],
)
def test_an_edited_manifest_is_refused(small, where, value):

    def write(manifest):
        if where == "sha256":
            (small.folder / "manifest.json").write_text(json.dumps(manifest))
        else:
            write_manifest(small.folder, manifest)

    manifest = json.loads((small.folder / "manifest.json").read_text())
    *parents, last = where.split(".")
    entry = manifest
    for name in parents:
        entry = entry[name]
    entry[last] = value
    # A spec of another network may show at the first field that does not fit it.
    others = {"precision": "(precision|tolerance)", "spec": "(spec|name|classes)"}
    first = where.split(".")[0]
    field = where if first == "input" else others.get(first, first)
    write(manifest)
    told = rf"manifest\.json (has (no|a|a wrong) {field}|describes other|is no JSON|has a number)"
    with pytest.raises(UserError, match=told):
        load(small.folder)
    del entry[last]
    write(manifest)
    with pytest.raises(UserError, match=rf"manifest\.json has (no|a wrong) {field}"):
        load(small.folder)


@pytest.mark.parametrize(
    ("key", "wrong", "old"), [("interpolation", "lanczos", "bilinear"), ("stretch", 1, False)]
)
def test_scaling_that_a_manifest_of_0_1_lacks_is_completed(small, key, wrong, old):
    path = small.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["input"][key], manifest["sha256"]["manifest.json"]
    path.write_text(json.dumps(manifest))
    assert getattr(load(small.folder).manifest.input, key) == old
    manifest["input"][key] = wrong
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json"):
        load(small.folder)


def test_whatever_bit_of_a_manifest_is_flipped_it_is_refused(small):
    path = small.folder / "manifest.json"
    content, rng = path.read_bytes(), np.random.RandomState(0)
    for at in (
        content.index(b"class 3") + 6,
        content.index(b"manifest.json"),
        *rng.randint(0, len(content), 300),
    ):
        for bit in (1, 1 << rng.randint(8)):
            flipped = bytearray(content)
            flipped[at] ^= bit
            path.write_bytes(flipped)
            with contextlib.suppress(UserError):
                assert load(small.folder).manifest == small.manifest  # white space was changed


def test_what_an_old_manifest_does_not_cover_is_told(small, capsys, monkeypatch):
    right = Check("simple_bind", 0.0, None, {"difference": 1e-5})
    monkeypatch.setattr(verification, "verify", lambda *_: [[right]])
    manifest = json.loads((small.folder / "manifest.json").read_text())
    del manifest["sha256"]["manifest.json"]
    manifest["classes"][3] = "another"
    (small.folder / "manifest.json").write_text(json.dumps(manifest))
    for _ in range(2):  # that it was verified does not change it
        assert report(load(small.folder))
        assert "not covered: manifest.json" in capsys.readouterr().out
    write_manifest(small.folder, manifest)
    assert report(load(small.folder))
    assert report(load(small.folder))
    assert "not covered" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["x" * 300, "\u00e9" * 200, "a\0b", "\ud800", "../x", "movie"])
def test_a_manifest_of_other_files_is_refused(small, name):
    manifest = json.loads((small.folder / "manifest.json").read_text())
    manifest["sha256"][name] = "0" * 64
    write_manifest(small.folder, manifest)
    with pytest.raises(UserError, match=r"manifest\.json describes other files"):
        load(small.folder)


def test_how_large_a_file_is_is_looked_at_before_its_sum(small, monkeypatch):
    monkeypatch.setattr(artifact_module, "sha256", None)  # it would take minutes
    os.truncate(small.params, 100 << 30)  # a hole, which takes no room on the disk
    with pytest.raises(UserError, match="has more than 4294967296 bytes"):
        load(small.folder)


def test_an_export_written_while_it_was_verified_stays(small, one_runtime, monkeypatch):
    def meanwhile(artifacts, *options, verify=verification.verify):
        checks = verify(artifacts, *options)
        exported(named("preact8", unit="basic"), small.folder, size=8)
        return checks

    monkeypatch.setattr(verification, "verify", meanwhile)
    with pytest.raises(UserError, match="was written anew meanwhile"):
        report(small)
    assert load(small.folder).manifest.input.shape == (3, 8, 8)


def test_classes_of_one_name_are_told_apart_by_their_numbers(small, capsys):
    write_manifest(
        small.folder, {**small.manifest.to_dict(), "classes": ["crane"] * 2 + CLASSES[2:]}
    )
    found = Predictor(load(small.folder))
    assert found.classes == ["crane (0)", "crane (1)", *CLASSES[2:]]
    assert "several classes are called 'crane'" in capsys.readouterr().err
    names = [name for name, _ in found.top(np.zeros((1, 3, 16, 16)), 10)[0]]
    assert sorted(names) == sorted(found.classes)


@pytest.mark.parametrize(("change", "right"), [(3e-5, True), (3e-4, False)])
def test_a_form_is_held_to_ten_times_the_tolerance(small, change, right):
    manifest = json.loads((small.folder / "manifest.json").read_text())
    logits = np.array(manifest["reference"]["logits"])
    assert manifest["tolerance"] == {"difference": 1e-5}
    manifest["reference"]["logits"] = (logits + change * abs(logits).max()).tolist()
    write_manifest(small.folder, manifest)
    if right:
        Predictor(load(small.folder))
    else:
        with pytest.raises(UserError, match="does not compute here"):
            Predictor(load(small.folder))


def test_a_shape_is_not_taken_where_the_manifest_has_one(small):
    with pytest.raises(UserError, match="--shape"):
        verify([small], (3, 32, 32))


def test_what_is_no_export_is_refused(small, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="symbol"):
        load(tmp_path / "empty")
    small.params.unlink()
    with pytest.raises(UserError, match="params"):
        load(small.folder)


def test_an_export_replaces_the_one_before_whole(small):
    before = small.params.read_bytes()
    net = get_model("preact8", unit="basic")
    randomise(net, seed=2)
    again = export(net, small.folder, (3, 16, 16), classes=CLASSES, **INPUT)
    assert again.params.read_bytes() != before
    assert sorted(path.name for path in small.folder.parent.iterdir()) == ["export"]


def test_every_class_needs_a_name(tmp_path):
    net = get_model("preact8", unit="basic")
    randomise(net)
    with pytest.raises(UserError, match="9 names"):
        export(net, tmp_path / "export", (3, 16, 16), classes=CLASSES[1:], **INPUT)


def test_what_is_no_export_is_never_replaced(small, tmp_path):
    net = get_model("preact8", unit="basic")
    randomise(net)
    (small.folder / "thesis.txt").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.params").touch()
    (tmp_path / "file").touch()
    for taken in (small.folder, tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(UserError, match="no export of ours"):
            export(net, taken, (3, 16, 16), classes=CLASSES, **INPUT)
    assert (small.folder / "thesis.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert export(net, tmp_path / "empty", (3, 16, 16), classes=CLASSES, **INPUT).manifest


def test_a_folder_with_a_manifest_of_others_is_never_replaced(small, tmp_path):
    net = get_model("preact8", unit="basic")
    randomise(net)
    web = tmp_path / "web"
    web.mkdir()
    (web / "manifest.json").write_text('{"name": "my web app"}')
    (web / "vscode-settings.json").write_text("{}")
    (small.folder / "weights-of-mine.params").touch()
    for taken in (web, small.folder):
        before = sorted(path.name for path in taken.iterdir())
        with pytest.raises(UserError, match="no export of ours"):
            export(net, taken, (3, 16, 16), classes=CLASSES, **INPUT)
        assert sorted(path.name for path in taken.iterdir()) == before


def test_what_a_link_leads_to_is_replaced(small, tmp_path):
    net = get_model("preact8", unit="basic")
    randomise(net, seed=2)
    link, before = tmp_path / "link", small.params.read_bytes()
    link.symlink_to(small.folder)
    export(net, link, (3, 16, 16), classes=CLASSES, **INPUT)
    assert link.is_symlink()
    assert small.params.read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "link"]


def test_a_network_that_the_parameters_do_not_fit_is_not_built(small):
    manifest = json.loads((small.folder / "manifest.json").read_text())
    manifest["spec"]["stages"] = [3000, 3000, 3000]
    write_manifest(small.folder, manifest)
    with pytest.raises(UserError, match="the network in its manifest"):
        verify([load(small.folder)])


def test_a_folder_that_cannot_be_replaced_stays(small, tmp_path, monkeypatch):
    before, replace = small.params.read_bytes(), os.replace

    def failing(source, target):
        if Path(target) == small.folder and ".before" not in str(source):
            raise OSError("no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no"), whole_folder(small.folder) as temporary:
        (temporary / "new").touch()
    assert small.params.read_bytes() == before
    assert os.listdir(tmp_path) == ["export"]


@pytest.mark.parametrize("path", ["export", "export/preact8-symbol.json", ".", "link"])
def test_an_export_that_a_killed_process_was_replacing_is_found(small, tmp_path, path):
    """By its own name, by its symbol's, by its run's, or by a link."""
    (tmp_path / "link").symlink_to("export")
    shutil.copytree(small.folder, tmp_path / ".export.abcdefgh.new")
    small.folder.rename(tmp_path / ".export.abcdefgh.before")
    assert load(tmp_path / path).manifest == small.manifest
    assert sorted(os.listdir(tmp_path)) == ["export", "link"]


def test_such_an_export_is_converted(small, tmp_path):
    small.folder.rename(tmp_path / ".export.abcdefgh.before")
    assert sources.read(small.folder).spec == named("preact8", unit="basic", classes=10)


def test_the_parameters_are_those_of_the_same_name(small):
    longer = small.folder / "preact8-v2-0001.params"
    shutil.copy(small.params, longer)
    assert load(small.symbol).params == small.params


def test_a_module_checkpoint_is_verified_too(tmp_path, without_native):
    symbol = import_module("symbols.resnetv2").get_symbol(10, 8, "3,32,32")
    module = mx.mod.Module(symbol)
    module.bind([("data", (2, 3, 32, 32))], [("softmax_label", (2,))])
    module.init_params(mx.init.MSRAPrelu("in", 0))
    module.save_checkpoint(str(tmp_path / "net"), 3)
    (found,) = verify([load(tmp_path)])
    assert [check.runtime for check in found if not check.passed] == []
    assert len(found) == len(RUNTIMES)


def test_a_pair_without_arg_and_aux_is_served_verified_and_loaded(
    tmp_path, without_native, monkeypatch, capsys
):
    """As Gluon's `collect_params().save` writes it. MXNet's C predict API does not take it."""
    net = get_model("preact8", unit="basic")
    randomise(net)
    net(mx.sym.var("data")).save(str(tmp_path / "net-symbol.json"))
    net.collect_params().save(str(tmp_path / "net-0000.params"))
    artifact, images = load(tmp_path), reference_images((3, 16, 16))
    expected = net(mx.nd.array(images)).asnumpy()
    for way in (symbol_block, module, simple_bind, predictor):
        found = way(str(artifact.symbol), str(artifact.params), images)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(
        verification, "RUNTIMES", [("C predict API", PLAIN), ("simple_bind", PLAIN)]
    )
    assert report(artifact, (3, 16, 16))
    said = capsys.readouterr().out
    assert said.count("  ok  ") == 1
    assert "left out: C predict API" in said
    again = get_model("preact8", unit="basic")
    load_parameters(again, artifact.params)
    assert np.array_equal(again(mx.nd.array(images)).asnumpy(), expected)


def test_of_several_epochs_the_last_is_taken_and_said_or_the_one_that_is_named(
    tmp_path, without_native, monkeypatch, capfd
):
    symbol, third, tenth = (
        tmp_path / f"net-{end}" for end in ("symbol.json", "0003.params", "0010.params")
    )
    images, expected = reference_images((3, 16, 16)), {}
    for seed, path in enumerate((third, tenth)):
        net = get_model("preact8", unit="basic")
        randomise(net, seed=seed)
        save_parameters(net, path)
        symbol.write_text(net(mx.sym.var("data")).tojson())
        expected[path] = net(mx.nd.array(images)).asnumpy()
    for path, epoch in ((tmp_path, tenth), (symbol, tenth), (third, third), (tenth, tenth)):
        artifact = load(path)
        said = capfd.readouterr().err
        if path in expected:
            assert said == ""
        else:
            assert f"{tenth} is taken, the last of 2" in said
            assert f"such as {third}\n" in said
        found = Predictor(artifact, shape=(3, 16, 16)).run(images)
        np.testing.assert_allclose(found, expected[epoch], rtol=1e-4, atol=1e-4)
    # The runtimes, our predictor among them, are verified with the epoch that is named.
    monkeypatch.setattr(verification, "RUNTIMES", [("Predictor", None), ("simple_bind", PLAIN)])
    tenth.write_bytes(tenth.read_bytes()[:100])
    (found,) = verify([load(third)], (3, 16, 16))
    assert [check.passed for check in found] == [True, True]
    symbol.unlink()
    with pytest.raises(UserError, match=r"no net-symbol\.json beside it"):
        load(third)


def test_a_pair_that_mxnet_can_not_compute_here_names_the_way_out(tmp_path, one_runtime):
    """float16 has no matrix product on CPUs."""
    weight = mx.sym.var("weight", dtype="float16")
    data = mx.sym.Cast(mx.sym.Flatten(mx.sym.var("data")), dtype="float16")
    symbol = mx.sym.FullyConnected(data, weight, num_hidden=10, no_bias=True)
    arrays = {"weight": mx.nd.ones((10, 192), dtype="float16")}
    mx.model.save_checkpoint(str(tmp_path / "half"), 7, symbol, arrays, {})
    for way in (lambda pair: Predictor(pair, shape=(3, 8, 8)), lambda p: verify([p], (3, 8, 8))):
        with pytest.raises(
            UserError, match=r"does not run.*(?:FP|float)16.*`convert .*half-0007\.params"
        ):
            way(load(tmp_path))


@pytest.mark.parametrize("what", ["symbol", "params"])
def test_a_damaged_pair_without_manifest_is_named(small, what):
    (small.folder / "manifest.json").unlink()
    path = getattr(small, what)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=path.name):
        verify([load(small.folder)])


def test_parameters_of_another_network_are_refused(small, tmp_path):
    with pytest.raises(UserError, match="stage1_unit2"):
        load_parameters(get_model("preact14"), small.params)
    with pytest.raises(UserError, match="shape"):
        load_parameters(get_model("preact8", unit="basic", classes=11), small.params)
    (tmp_path / "text").write_text("no parameters")
    with pytest.raises(UserError, match="not an MXNet parameter file"):
        load_parameters(get_model("preact8", unit="basic"), tmp_path / "text")


# -- Images and predictions ------------------------------------------------------------------------


def network_logits(images):
    """What the network of the fixture `small` gives."""
    net = ResNetV2(named("preact8", unit="basic"))
    randomise(net)
    return net(mx.nd.array(images)).asnumpy()


def test_probabilities_are_the_softmax_of_the_networks_logits(small):
    pixels = np.random.RandomState(0).randint(0, 256, (5, 3, 16, 16))
    mean, std = (np.array(INPUT[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    logits = network_logits((pixels - mean) / std).astype("float64")
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    predictor = Predictor(small)
    np.testing.assert_allclose(predictor.probabilities(pixels), expected, atol=1e-5)
    likeliest = [row[0][0] for row in predictor.top(pixels)]
    assert likeliest == [CLASSES[i] for i in expected.argmax(1)]


def test_a_pair_without_manifest_takes_arrays_but_no_images(small):
    (small.folder / "manifest.json").unlink()
    predictor = Predictor(load(small.folder), shape=(3, 16, 16))
    images = reference_images((3, 16, 16))
    np.testing.assert_allclose(predictor.run(images), network_logits(images), rtol=1e-5, atol=1e-5)
    assert predictor.classes == [str(index) for index in range(10)]
    with pytest.raises(UserError, match=r"manifest\.json"):
        predictor.probabilities(images)
    with pytest.raises(UserError, match=r"manifest\.json"):
        predictor.read(io.BytesIO())


@pytest.mark.parametrize("max_batch", [1, 5, 8])
def test_any_number_of_images_is_computed_rightly(small, max_batch):
    images = np.random.RandomState(1).normal(size=(21, 3, 16, 16)).astype("float32")
    expected = network_logits(images)
    predictor = Predictor(small, max_batch=max_batch)
    for count in (1, 2, 3, 5, 8, 9, 21, 1):
        found = predictor.run(images[:count])
        assert difference(found, expected[:count]) <= 1e-5


def test_threads_share_a_predictor(small):
    images = np.random.RandomState(1).normal(size=(64, 3, 16, 16)).astype("float32")
    expected, predictor = network_logits(images), Predictor(small, max_batch=8)
    parts = [slice(start, start + 1 + start % 13) for start in range(50)] * 8
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda part: predictor.run(images[part]), parts)
    for part, rows in zip(parts, found):
        assert difference(rows, expected[part]) <= 1e-5


def test_the_pair_that_mxnet_computes_wrongly_is_served_rightly(gluoncv_export):
    predictor = Predictor(gluoncv_export)
    images = np.random.RandomState(1).normal(size=(5, 3, 32, 32)).astype("float32")
    pair = gluoncv_export.symbol, gluoncv_export.params
    expected = symbol_block(*map(str, pair), images)
    assert difference(predictor.run(images), expected) <= 1e-5


def test_the_form_that_computes_wrongly_is_not_run(gluoncv_export, monkeypatch):
    def carelessly(symbol, arguments, statistics):
        return symbol.get_backend_symbol("MKLDNN"), arguments, statistics

    monkeypatch.setattr(forms, "fused", carelessly)
    predictor = Predictor(gluoncv_export)
    assert predictor.form == "float32, plain"
    assert [line.split()[:2] for line in predictor.rejected] == [["FAILED", "fused"]]


def test_other_parameters_than_the_manifests_logits_are_of_are_not_run(small):
    small = replace_parameters(small)
    with pytest.raises(UserError, match="does not compute here what was exported"):
        Predictor(small)


def test_a_form_that_does_not_run_here_is_not_run(small, monkeypatch):
    def failing(self, inputs):
        raise mx.MXNetError("no kernel")

    monkeypatch.setattr(runners.Fused, "run", failing)
    predictor = Predictor(small, engine="mxnet")
    assert predictor.form == "float32, plain"
    assert "no kernel" in predictor.rejected[0]


def test_arrays_of_any_layout_and_none_are_taken(small):
    predictor, images = Predictor(small), reference_images((3, 16, 16))
    expected = predictor.run(images)
    assert predictor.run(images[:0]).shape == (0, 10)
    assert (predictor.run(np.asfortranarray(images.astype("float64"))) == expected).all()
    with pytest.raises(ValueError, match=r"not \(4, 3, 16, 15"):
        predictor.run(images[..., 1:])


def test_a_largest_batch_of_nothing_is_refused(small):
    with pytest.raises(UserError, match="at least 1"):
        Predictor(small, max_batch=0)


def test_a_run_is_as_good_as_its_export(small, tmp_path):
    shutil.copytree(small.folder, tmp_path / "run" / "export")
    (tmp_path / "run" / "recipe.json").write_text("{}")
    assert load(tmp_path / "run").params.read_bytes() == small.params.read_bytes()
    assert json.loads((small.folder / "manifest.json").read_text())["name"] == "preact8"
