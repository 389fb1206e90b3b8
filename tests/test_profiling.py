"""The kernel report: oneDNN's lines, the layers that they belong to, and the text."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gluon_resnetv2.profiling.layers import layers_of
from gluon_resnetv2.profiling.main import report, run
from gluon_resnetv2.profiling.verbose import parse
from gluon_resnetv2.spec import named
from tests.common import skip_unless_installed

ROOT = Path(__file__).resolve().parents[1]
TENSORS = "data_f32::blocked:aBcd16b:f0 diff_undef::undef::f0"
CONV = (
    "dnnl_verbose,exec,cpu,convolution,jit:avx512_common,backward_weights,src_f32::blocked:aBcd16b:"
    "f0 wei_f32::blocked:ABcd16b16a:f0 bia_undef::undef::f0 dst_f32::blocked:aBcd16b:f0,,alg:"
    "convolution_direct,mb8_ic16oc32_ih32oh16kh3sh2dh0ph1_iw32ow16kw3sw2dw0pw1,0.25"
)
EXECUTED = "dnnl_verbose,exec,cpu"
LINES = "\n".join(
    (
        "dnnl_verbose,info,cpu,runtime:OpenMP",
        CONV,
        "some other output, with, commas",
        f"{EXECUTED},batch_normalization,bnorm_ref:any,forward_training,{TENSORS},,flags:S,"
        "mb8ic16ih32iw32,0.5",
        f"{EXECUTED},sum,ref:any,undef,src_f32::blocked:abcd:f0 src_f32::blocked:aBcd16b:f0 "
        "dst_f32::blocked:abcd:f0,,,8x64x8x8,0.1",
        f"{EXECUTED},reorder,simple:any,undef,src_bf16::blocked:abcd:f0 dst_f32::blocked:acdb:f0"
        ",,,8x64x8x8,0.02",
    )
)


@pytest.mark.parametrize("begin", ["dnnl_verbose", "onednn_verbose"])
def test_lines_of_onednn_are_read(begin):
    conv, norm, total, copy = parse(LINES.replace("dnnl_verbose", begin))
    assert (conv.kind, conv.kernel, conv.direction) == (
        *("convolution", "jit:avx512_common"),
        "backward weights",
    )
    assert conv.milliseconds == 0.25
    assert conv.tensors == (
        ("src", "f32", "aBcd16b"),
        ("wei", "f32", "ABcd16b16a"),
        ("dst", "f32", "aBcd16b"),
    )
    # Each of 8 x 32 x 16 x 16 outputs takes 16 x 3 x 3 multiply-adds.
    assert conv.operations == 2 * (8 * 32 * 16 * 16) * (16 * 3 * 3)
    assert norm.bytes == 2 * 4 * 8 * 16 * 32 * 32
    assert total.bytes == 3 * 4 * 8 * 64 * 8 * 8
    assert copy.bytes == (2 + 4) * 8 * 64 * 8 * 8
    assert [one.slow for one in (conv, norm, total, copy)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("kernel", "slow"),
    [("ref:any", True), ("simple_ref:any", True), ("ncsp_bnorm:any", True), ("simple:any", False),
     ("bnorm_jit:avx512_common", False), ("brgconv:avx512_core_amx", False), ("jit:uni", False)],
)  # fmt: skip
def test_reference_kernels_are_known_by_their_names(kernel, slow):
    (primitive,) = parse(LINES.splitlines()[1].replace("jit:avx512_common", kernel))
    assert primitive.slow is slow


@pytest.fixture(scope="module", params=["preact14 mxnet", "resnet11 mxnet", "preact14 native"])
def profiled(request):
    model, engine = request.param.split()
    if engine == "native":
        skip_unless_installed()
    job = {"model": model, "switches": {}, "in_channels": 3, "batch_size": 4, "image_size": 16}
    job.update(steps=2, dtype="float32", inference=False, engine=engine)
    return job, *run(job)


def test_every_convolution_belongs_to_the_layer_of_its_shape(profiled):
    job, steps, answer = profiled
    spec = named(job["model"])
    convs = {"conv0": spec.stem_conv}
    for unit in spec.units():
        convs.update({f"{unit.name}_{conv.name}": conv for conv in unit.convs})
        if unit.projection:
            convs[f"{unit.name}_sc"] = unit.projection
    for step in steps:
        seen = {}
        for primitive, layer in zip(step, layers_of(step, answer["nodes"])):
            if primitive.kind == "convolution":
                conv, sizes = convs[layer.removesuffix("_fwd")], primitive.sizes
                assert (sizes["ic"], sizes["oc"], sizes["kh"], sizes["sh"]) == (
                    *(conv.in_channels, conv.out_channels),
                    *(conv.kernel, conv.stride),
                )
                seen.setdefault(primitive.direction, []).append(layer.removesuffix("_fwd"))
        assert set(seen["forward"]) == set(seen["backward weights"]) == set(convs)
        assert set(seen["backward data"]) == set(convs) - {"conv0"}


def test_the_report_accounts_for_all_that_onednn_did(profiled):
    job, steps, answer = profiled
    text = report(job, steps, answer)
    inside = float(re.search(r"([\d.]+) ms of it in oneDNN", text)[1])
    table = text.split("By primitive and kernel\n")[1].split("\n\n")[0].splitlines()[1:]
    rows = [re.split(r"  +", line.strip()) for line in table]
    milliseconds = [
        float(next(cell for cell in row if re.fullmatch(r"\d+\.\d\d", cell))) for row in rows
    ]
    assert sum(milliseconds) == pytest.approx(inside, abs=0.01 * len(rows) + 0.05)
    stages = re.findall(r"^(?:stage\d|stem and head) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    assert len(stages) == 4
    assert sum(map(float, sum(stages, ()))) == pytest.approx(inside, abs=0.1)


def test_what_took_no_time_that_onednn_could_measure_has_no_rate():
    job = {"model": "preact8", "switches": {}, "in_channels": 3, "batch_size": 8, "image_size": 32}
    job.update(dtype="float32", inference=True, engine="native")
    ceilings = {"gflops": 100.0, "gbytes": 10.0}
    answer = {"seconds": [0.001], "ceilings": ceilings, "nodes": [], "operators": {}}
    step = parse(LINES.replace(",0.02", ",0").replace("jit:avx512_common", "jit:other"))
    table = report(job, [step], answer).split("By primitive and kernel\n")[1].split("\n\n")[0]
    (copy,) = (line for line in table.splitlines() if line.startswith("reorder"))
    assert re.split(r"  +", copy.strip()) == [
        "reorder",
        "simple:any",
        "1",
        "0.00",
        "0.0%",
        "layout",
    ]


def test_native_inference_is_profiled_and_its_normalisations_named():
    skip_unless_installed()
    job = {"model": "preact8", "switches": {}, "in_channels": 1, "batch_size": 2}
    job.update(image_size=8, steps=1, dtype="float32", inference=True, engine="native")
    (step,), answer = run(job)
    assert {primitive.direction for primitive in step} <= {"forward", ""}
    normalised = [
        layer
        for primitive, layer in zip(step, layers_of(step, answer["nodes"]))
        if primitive.kind == "batch_normalization"
    ]
    # Those of sums; convolutions take in all others.
    assert normalised == ["stage2_unit1_bn1_fwd", "stage3_unit1_bn1_fwd", "bn1_fwd"]


def profile(*words, cwd=ROOT, **variables):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "gluon_resnetv2", "profile", *words],
        cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True,
    )  # fmt: skip


def test_the_command_profiles_inference_and_leaves_nothing_behind(tmp_path):
    words = ("--inference", "--batch-size", "2", "--image-size", "8", "--in-channels", "1")
    places = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    more = ("--steps", "1", "--shortcut", "gate:-6")
    done = profile("preact8", *words, *more, cwd=tmp_path, **places)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("preact8 gate:-6, inference: 2 grey images of 8x8, float32, ")
    assert "stage1_unit1_conv1" in done.stdout
    assert "backward data" not in done.stdout
    assert not list(tmp_path.iterdir())
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)  # MXNet had replaced it by its trace, as root


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nope",), "error: unknown model 'nope'"),
        (("preact8", "--steps", "0"), "error: --steps must be 1 to"),
        (("preact8", "--shortcut", "none"), "error: unknown shortcut 'none'"),
    ],
)
def test_mistakes_are_told_in_one_line(words, message):
    done = profile(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
