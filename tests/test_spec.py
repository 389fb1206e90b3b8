"""The architecture as data, against the paper's tables and hand counts."""

from __future__ import annotations

import pytest

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.paper import FAIL, RESULTS
from gluon_resnetv2.spec import (
    ORDER,
    Conv1x1,
    Dropout,
    Gate,
    Identity,
    Scale,
    Spec,
    cifar,
    imagenet,
    named,
    parse_shortcut,
    unit_ops,
)

# Fig. 4 read off by hand: what stands before the split's branch, on it, and after the addition,
# for a unit of two weight layers.
FIGURE_4 = {
    "original": ("", "conv1 bn1 relu1 conv2 bn2", "relu2"),
    "bn_after_add": ("", "conv1 bn1 relu1 conv2", "bn2 relu2"),
    "relu_before_add": ("", "conv1 bn1 relu1 conv2 bn2 relu2", ""),
    "relu_preact": ("relu1", "conv1 bn1 relu2 conv2 bn2", ""),
    "full_preact": ("bn1 relu1", "conv1 bn2 relu2 conv2", ""),
}


@pytest.mark.parametrize("order", ORDER)
def test_operations_of_a_unit_are_those_of_figure_4(order):
    assert tuple(" ".join(ops) for ops in unit_ops(order, 2)) == FIGURE_4[order]


@pytest.mark.parametrize(
    ("order", "body", "after"),
    [
        ("original", "conv1 bn1 relu1 conv2 bn2 relu2 conv3 bn3", "relu3"),
        ("full_preact", "conv1 bn2 relu2 conv2 bn3 relu3 conv3", ""),
    ],
)
def test_operations_of_a_bottleneck(order, body, after):
    assert [" ".join(ops) for ops in unit_ops(order, 3)[1:]] == [body, after]


def test_operations_of_the_one_layer_skip():
    assert unit_ops("original", 1) == ((), ("conv1", "bn1"), ("relu1",))
    assert unit_ops("full_preact", 1) == (("bn1", "relu1"), ("conv1",), ())


@pytest.mark.parametrize("order", ORDER)
def test_the_first_activation_is_in_the_stem_and_the_last_in_the_head(order):
    spec = cifar(20, order=order)
    assert spec.stem_ops == ("conv0", "bn0", "relu0")
    assert spec.units()[0].pre == ()
    assert spec.head_ops == {"relu_preact": ("relu1",), "full_preact": ("bn1", "relu1")}.get(
        order, ()
    )


def hand_count_basic(depth: int, classes: int = 10) -> int:
    """ResNet-(6n+2) with option A: [v1] section 4.2, every term written out."""
    n = (depth - 2) // 6
    stem = 3 * 3 * 3 * 16 + 2 * 16
    stage1 = 2 * n * (9 * 16 * 16 + 2 * 16)
    stage2 = (9 * 16 * 32 + 2 * 32) + (2 * n - 1) * (9 * 32 * 32 + 2 * 32)
    stage3 = (9 * 32 * 64 + 2 * 64) + (2 * n - 1) * (9 * 64 * 64 + 2 * 64)
    return stem + stage1 + stage2 + stage3 + 64 * classes + classes


def hand_count_preact_bottleneck(depth: int, classes: int = 10) -> int:
    """Pre-activation ResNet-(9n+2) with projections: BN before each convolution."""
    n = (depth - 2) // 9
    total = 27 * 16 + 2 * 16  # the stem, and the first unit's BN
    channels = 16
    for width in (16, 32, 64):
        for unit in range(n):
            total += channels * width + 9 * width * width + width * 4 * width
            total += 2 * width + 2 * width  # BN before the second and third convolution
            if (channels, unit) != (16, 0):
                total += 2 * channels  # BN before the first
            if unit == 0:
                total += channels * 4 * width  # the projection
            channels = 4 * width
    return total + 2 * 256 + 256 * classes + classes


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_parameters_of_basic_networks(depth):
    assert named(f"resnet{depth}").parameter_count() == hand_count_basic(depth)
    # Pre-activation moves every BN to the other side of its convolution: where a stage begins they
    # lose 16 and 32 channels; the head's has 64, and the stem's own 16 become the first unit's.
    assert named(f"preact{depth}").parameter_count() == hand_count_basic(depth)


@pytest.mark.parametrize(("input_bn", "learned"), [("off", 0), ("plain", 0), ("shift", 3)])
def test_of_an_input_bn_only_a_shift_is_learned(input_bn, learned):
    count = named("preact20", input_bn=input_bn).parameter_count()
    assert count == hand_count_basic(20) + learned  # a beta for each colour


@pytest.mark.parametrize(("depth", "millions"), [(164, 1.70), (1001, 10.33)])
def test_parameters_of_bottleneck_networks(depth, millions):
    count = named(f"preact{depth}").parameter_count()
    assert count == hand_count_preact_bottleneck(depth)
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("depth", "parameters", "multiply_adds"),
    # torchvision's counts of the same networks, which are widely published; it puts the stride on
    # the 3x3 convolution, [v1] (3.8e9 for ResNet-50) on the first 1x1.
    [
        (18, 11_689_512, 1_814_073_344),
        (34, 21_797_672, 3_663_761_408),
        (50, 25_557_032, 4_089_184_256),
        (101, 44_549_160, 7_801_405_440),
        (152, 60_192_808, 11_513_626_624),
    ],
)
def test_size_and_cost_of_imagenet_networks(depth, parameters, multiply_adds):
    spec = named(f"resnet{depth}", stride_on="3x3")
    assert spec.parameter_count() == parameters
    assert spec.multiply_adds(224) == multiply_adds


def test_multiply_adds_of_resnet20_by_hand():
    stem, classifier = 27 * 16 * 32**2, 64 * 10
    stage1 = 6 * 9 * 16 * 16 * 32**2
    stage2 = (9 * 16 * 32 + 5 * 9 * 32 * 32) * 16**2
    stage3 = (9 * 32 * 64 + 5 * 9 * 64 * 64) * 8**2
    assert named("resnet20").multiply_adds(32) == stem + stage1 + stage2 + stage3 + classifier


def hand_count_bottleneck_cost(stages: tuple[int, ...]) -> int:
    """Multiply-adds of bottlenecks that stride on their first convolution, over w^2 * size^2.

    A stage halves the map's size as it doubles the width w of its 3x3 convolutions, so that this
    product is one for all stages. A unit costs 4 + 9 + 4 of it; a stage's first one also has a
    projection, and reads w channels in the first stage, 2w in the others.
    """
    first, others = 1 + 9 + 4 + 4, 2 + 9 + 4 + 8
    return first + others * (len(stages) - 1) + (4 + 9 + 4) * (sum(stages) - len(stages))


@pytest.mark.parametrize(
    ("depth", "stages", "published"),
    # [v1] Table 1, in 1e9; 50's is cut, not rounded.
    [(50, (3, 4, 6, 3), 3.8), (101, (3, 4, 23, 3), 7.6), (152, (3, 8, 36, 3), 11.3)],
)
def test_multiply_adds_of_imagenet_networks_by_hand(depth, stages, published):
    stem, classifier = 49 * 3 * 64 * 112**2, 2048 * 1000
    expected = stem + hand_count_bottleneck_cost(stages) * 64**2 * 56**2 + classifier
    for family in ("resnet", "preact"):
        assert named(f"{family}{depth}").multiply_adds(224) == expected
    assert expected / 1e9 == pytest.approx(published, abs=0.06)


@pytest.mark.parametrize(("depth", "units"), [(164, 18), (1001, 111)])
def test_multiply_adds_of_cifar_bottlenecks_by_hand(depth, units):
    stem, classifier = 27 * 16 * 32**2, 256 * 10
    expected = stem + hand_count_bottleneck_cost((units,) * 3) * 16**2 * 32**2 + classifier
    assert named(f"preact{depth}").multiply_adds(32) == expected


def test_gates_and_projections_are_counted():
    plain = named("resnet20").parameter_count()
    changes = 16 * 32 + 32 * 64
    squares = 3 * 16 * 16 + 2 * 32 * 32 + 2 * 64 * 64
    outputs = 3 * (16 + 32 + 64)
    assert named("resnet20", shortcut="gate:-6").parameter_count() == (
        plain + changes + squares + outputs
    )
    # Every projection has a BN in the original order, as the branch beside it.
    assert named("resnet20", shortcut="conv1x1").parameter_count() == (
        plain + changes + squares + 2 * outputs
    )
    # Option C of [v1] is the same network.
    option_c = named("resnet20", widening="C").parameter_count()
    assert option_c == named("resnet20", shortcut="conv1x1").parameter_count()


@pytest.mark.parametrize(
    ("name", "unit", "stages"),
    [
        ("preact20", "basic", (3, 3, 3)),
        ("preact29", "bottleneck", (3, 3, 3)),
        ("preact110", "basic", (18, 18, 18)),
        ("preact164", "bottleneck", (18, 18, 18)),
        ("preact1001", "bottleneck", (111, 111, 111)),
        ("preact1202", "basic", (200, 200, 200)),
        ("preact18", "basic", (2, 2, 2, 2)),
        ("preact34", "basic", (3, 4, 6, 3)),
        ("preact50", "bottleneck", (3, 4, 6, 3)),
        ("preact101", "bottleneck", (3, 4, 23, 3)),
        ("preact152", "bottleneck", (3, 8, 36, 3)),
        ("preact200", "bottleneck", (3, 24, 36, 3)),
        ("preact269", "bottleneck", (3, 30, 48, 8)),
    ],
)
def test_depths(name, unit, stages):
    spec = named(name)
    assert (spec.unit, spec.stages, spec.depth) == (unit, stages, int(name[6:]))


def test_one_layer_skip_of_table_3_has_the_same_depth_and_size():
    single = named("resnet110", unit="single")
    assert (single.stages, single.depth) == ((36, 36, 36), 110)
    assert single.parameter_count() == hand_count_basic(110)


def test_a_depth_of_imagenet_can_be_a_cifar_network():
    assert named("preact50", stem="cifar").stages == (8, 8, 8)
    assert named("preact152", stem="cifar").unit == "basic"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("preact21",), "6n\\+2"),
        (("preact2",), "6n\\+2"),
        (("preact0",), "preactN"),
        (("preact22", "imagenet"), "18, 34, 50"),
        (("preact",), "preactN"),
        (("preact020",), "preactN"),
        (("preact\uff12\uff10",), "preactN"),
        (("preact99998",), "9999"),
        (("densenet121",), "preactN"),
        (("preact20", "mnist"), "cifar, imagenet"),
    ],
)
def test_impossible_networks_are_refused_with_the_rule(arguments, says):
    with pytest.raises(UserError, match=says):
        named(*arguments)


def test_a_unit_that_would_change_an_imagenet_depth_is_refused():
    with pytest.raises(UserError, match="bottleneck units only"):
        named("preact50", unit="basic")
    assert named("preact50", unit="bottleneck") == named("preact50")


@pytest.mark.parametrize(
    "switch", [{"order": "preact"}, {"widening": "D"}, {"unit": "wide"}, {"stride_on": "1x1"}]
)
def test_unknown_switches_are_refused_with_the_choices(switch):
    with pytest.raises(UserError, match="choose"):
        named("preact20", **switch)


@pytest.mark.parametrize(
    ("text", "shortcut"),
    [
        ("identity", Identity()),
        ("plain", Scale(0, 1)),
        ("scale:0.5,0.5", Scale(0.5, 0.5)),
        ("scale:0.5", Scale(0.5, 1)),
        ("gate:-6", Gate(-6)),
        ("exclusive-gate:-7", Gate(-7, exclusive=True)),
        ("conv1x1", Conv1x1()),
        ("dropout:0.3", Dropout(0.3)),
        ("dropout", Dropout(0.5)),
    ],
)
def test_shortcuts_are_read_and_written_as_text(text, shortcut):
    assert parse_shortcut(text) == shortcut
    assert parse_shortcut(str(shortcut)) == shortcut


@pytest.mark.parametrize(
    "text", ["", "id", "gate", "gate:x", "scale", "scale:1,2,3", "dropout:1", "gate:nan", "gate:1,"]
)
def test_other_shortcuts_are_refused(text):
    with pytest.raises(UserError, match=r"shortcut|dropout"):
        parse_shortcut(text)


def test_a_spec_reads_its_shortcut_as_text():
    spec = cifar(8, unit="basic", shortcut="gate:-6")
    assert spec.shortcut == Gate(-6)
    assert all(unit.gate for unit in spec.units())
    direct = Spec("x", "cifar", (1,), (16,), shortcut="gate:-6")
    assert direct.shortcut == Gate(-6)
    assert direct.units()[0].gate


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Dropout(1.5), "1.5"),
        (lambda: Dropout(-0.1), "-0.1"),
        (lambda: Dropout(float("nan")), "nan"),
        (lambda: Gate(float("nan")), "finite"),
        (lambda: Scale(1, float("inf")), "finite"),
        (lambda: Spec("x", "cifar", (1,), (16,), shortcut=3), "shortcut 3"),
        (lambda: named("preact20", ordr="x"), "ordr"),
    ],
)
def test_mistakes_in_code_are_refused_as_those_in_text(make, says):
    with pytest.raises(UserError, match=says):
        make()


@pytest.mark.parametrize(
    "change",
    [
        {"stages": "abc"},
        {"stages": 3},
        {"stages": [1, None, 1]},
        {"stages": [1, 1]},
        {"stages": []},
        {"channels": [16, -32, 64]},
        {"shortcut": 3},
        {"shortcut": None},
        {"shortcut": ["identity"]},
    ],
    ids=str,
)
def test_damaged_descriptions_are_refused(change):
    with pytest.raises(UserError, match=r"stages|shortcut|description"):
        Spec.from_dict({**cifar(20).to_dict(), **change})


def test_specs_survive_json():
    spec = named("resnet110", shortcut="exclusive-gate:-6", widening="B", classes=100)
    assert Spec.from_dict(spec.to_dict()) == spec
    with pytest.raises(UserError, match="network"):
        Spec.from_dict({"name": "x"})
    with pytest.raises(UserError, match="flavour"):
        Spec.from_dict({**spec.to_dict(), "flavour": "vanilla"})


def test_paper_results_name_the_networks_of_the_paper():
    rows = {(r.model, r.data, *sorted(r.switches.items()), r.note): r.error for r in RESULTS}
    assert rows["resnet110", "CIFAR-10", ("shortcut", "scale:0.5,0.5"), ""] == 12.35
    assert rows["resnet110", "CIFAR-10", ("shortcut", "plain"), ""] == FAIL
    assert rows["preact1001", "CIFAR-100", ""] == 22.71
    assert rows["preact110", "CIFAR-10", ("unit", "single"), ""] == 8.91
    assert all(r.model.endswith(str(r.spec.depth)) for r in RESULTS)


def test_imagenet_keeps_the_papers_defaults():
    spec = imagenet(200, order="full_preact")
    assert (spec.stride_on, spec.input_bn, spec.first_activation) == ("first", "off", "stem")
    assert spec.units()[3].convs[0].stride == 2
    assert imagenet(200, stride_on="3x3").units()[3].convs[1].stride == 2
