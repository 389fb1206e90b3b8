"""Keras' ResNetV2 and its files of weights, against Keras itself; and files that lie."""

from __future__ import annotations

import json
import sys
import tracemalloc
import zipfile
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats.keras_config import IMAGE, network
from gluon_resnetv2.formats.keras_file import read, write
from gluon_resnetv2.interop.keras import KERAS
from gluon_resnetv2.net import ResNetV2
from gluon_resnetv2.spec import named
from tests.common import difference

h5py = pytest.importorskip("h5py")

# Keras' own, of PyTorch's arrays on NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
TOLERANCE = 1e-4  # relative to the largest logit
slow = pytest.mark.slow


# -- Networks of Keras -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras():
    pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        yield pytest.importorskip("keras", minversion="3")


def randomised(model):
    """Gives a model of Keras random weights, statistics and gammas too; returns them."""
    rng, arrays = np.random.RandomState(0), {}
    for layer in model.layers:
        for variable in layer.weights:
            if variable.name == "kernel":
                deviation = np.sqrt(2 / np.prod(variable.shape[:-1]))
                array = rng.normal(0, deviation, variable.shape)
            elif variable.name in ("gamma", "moving_variance"):
                array = rng.uniform(0.5, 1.5, variable.shape)
            else:
                array = rng.normal(0, 0.2, variable.shape)
            arrays[f"{layer.name}/{variable.name}"] = array.astype("float32")
            variable.assign(array)
    return arrays


def model_of(keras, depth):
    return getattr(keras.applications, f"ResNet{depth}V2")(
        weights=None,
        input_tensor=keras.Input((None, None, 3)),
        classes=7,
        classifier_activation=None,
    )


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("depth", [50, *(pytest.param(depth, marks=slow) for depth in (101, 152))])
def test_networks_of_keras_convert_and_back(keras, depth):
    model = model_of(keras, depth)
    arrays = randomised(model)
    spec, ours = KERAS.to_ours(arrays)
    assert (spec.depth, spec.classes) == (depth, 7)
    net = ResNetV2(spec)
    net.initialize(mx.init.Zero())
    for name, parameter in net.collect_params().items():
        parameter.set_data(mx.nd.array(ours[name]))
    for size in (64, 96, 75):  # what is odd is padded on both sides
        pixels = np.random.RandomState(1).randint(0, 256, (2, size, size, 3)).astype("float32")
        prepared = keras.applications.resnet_v2.preprocess_input(pixels.copy())
        expected = model.predict(prepared, verbose=0)
        images = (pixels.transpose(0, 3, 1, 2) - KERAS.input["mean"][0]) / KERAS.input["std"][0]
        assert difference(net(mx.nd.array(images)).asnumpy(), expected) <= TOLERANCE
    assert difference(KERAS.logits(spec, arrays, images.astype("float32")), expected) <= 1e-5
    assert_same(KERAS.from_ours(spec, ours), arrays)


def test_learned_numbers_are_as_many_as_keras_counts(keras):
    model = model_of(keras, 50)
    learned = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    spec, _ = KERAS.to_ours(randomised(model))
    assert spec.parameter_count() == learned


@pytest.fixture(scope="module")
def saved(keras, tmp_path_factory):
    """A folder with a model's weights in each way that Keras has, and these weights."""
    folder = tmp_path_factory.mktemp("keras")
    model = model_of(keras, 50)
    arrays = randomised(model)
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    model.save(folder / "model.h5")
    return folder, arrays


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "model.h5"])
def test_files_of_keras_are_read(saved, name):
    folder, arrays = saved
    assert_same(read(folder / name), arrays)


@pytest.fixture(scope="module")
def base(keras):
    """Makes ResNetV2s of two stages of two narrow units."""
    resnet = pytest.importorskip("keras.src.applications.resnet")

    def stack(x):
        x = resnet.stack_residual_blocks_v2(x, 4, 2, name="conv2")
        return resnet.stack_residual_blocks_v2(x, 8, 2, stride1=1, name="conv3")

    def make(pooling="avg", image=None):
        image = keras.Input((32, 32, 3)) if image is None else image
        return resnet.ResNet(
            stack, True, True, weights=None, include_top=False, input_tensor=image, pooling=pooling
        )

    return make


FORMATS = ("model.keras", "model.h5", "model.weights.h5")


def save(model, path):
    (model.save_weights if path.name.endswith(".weights.h5") else model.save)(path)
    return path


def functional(keras, base, *layers):
    output = base.output
    for layer in layers:
        output = layer(output)
    return keras.Model(base.input, output)


def nested(keras, base):
    image = keras.Input((32, 32, 3))
    features = base(image, training=False)
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.Dropout(0.2)(features)))


FINE_TUNED = {
    "own name": lambda keras, base: functional(keras, base(), keras.layers.Dense(3, name="mine")),
    "own pooling": lambda keras, base: functional(
        keras, base(None), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)
    ),
    "sequential": lambda keras, base: keras.Sequential([base(), keras.layers.Dense(3)]),
    "softmax apart": lambda keras, base: functional(
        keras, base(), keras.layers.Dense(3), keras.layers.Softmax()
    ),
    "activation apart": lambda keras, base: keras.Sequential(
        [base(), keras.layers.Dense(3), keras.layers.Activation("softmax")]
    ),
    "nested": lambda keras, base: nested(keras, base()),
    "features": lambda keras, base: base(),
    "features of pixels": lambda keras, base: base(None),
}


@pytest.mark.parametrize("made", FINE_TUNED)
def test_fine_tuned_models_are_read_from_each_format(keras, base, made, tmp_path):
    model = FINE_TUNED[made](keras, base)
    if made == "own name":
        model.compile(optimizer="adam", loss="mse")
        model.optimizer.build(model.trainable_variables)  # is saved, too
    arrays = {}
    for layer in model._flatten_layers():
        own = {} if hasattr(layer, "layers") else {v.name: v.numpy() for v in layer.weights}
        name = "predictions" if isinstance(layer, keras.layers.Dense) else layer.name
        arrays.update({f"{name}/{variable}": array for variable, array in own.items()})
    for name in FORMATS:
        remarks = []
        assert_same(read(save(model, tmp_path / name), remarks.append), arrays)
        assert len(remarks) == (name == "model.weights.h5")


@pytest.mark.parametrize(
    ("head", "options", "says"),
    [
        ({"activation": "sigmoid"}, {}, "activation='sigmoid'"),
        ({}, {"pooling": "max"}, "of kind 'GlobalMaxPooling2D'"),
        ({}, {"rescaled": True}, "of kind 'Rescaling'"),
    ],
)
def test_what_has_no_weights_and_differs_is_refused(keras, base, head, options, says, tmp_path):
    image = keras.Input((32, 32, 3))
    first = keras.layers.Rescaling(1 / 255)(image) if options.pop("rescaled", False) else image
    features = base(image=first, **options).output
    model = keras.Model(image, keras.layers.Dense(3, **head)(features))
    for name in FORMATS[:2]:
        assert_refused(save(model, tmp_path / name), says)


@pytest.mark.parametrize("activation", ["linear", "softmax"])
def test_a_softmax_of_a_softmax_is_refused(keras, base, activation, tmp_path):
    softmax = [keras.layers.Softmax() for _ in range(2)]
    model = functional(keras, base(), keras.layers.Dense(3, activation=activation), *softmax)
    for name in FORMATS[:2]:
        assert_refused(save(model, tmp_path / name), "after another")


def rewired(keras, model, change):
    """The same layers, called otherwise."""
    config = json.loads(model.to_json())
    change(
        {
            layer["name"]: node
            for layer in config["config"]["layers"]
            for node in layer["inbound_nodes"]
        }
    )
    return keras.models.model_from_json(json.dumps(config))


def other_shortcut(nodes):
    nodes["conv2_block1_0_conv"]["args"] = nodes["conv2_block1_preact_bn"]["args"]


def statistics_of_the_batch(nodes):
    nodes["post_bn"]["kwargs"]["training"] = True


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_shortcut, "'conv2_block1_0_conv' that takes 'pool1_pool'"),
        (statistics_of_the_batch, "'post_bn' called with training='True'"),
    ],
)
def test_layers_that_are_called_otherwise_are_refused(keras, base, change, says, tmp_path):
    model = rewired(keras, functional(keras, base(), keras.layers.Dense(3)), change)
    for name in FORMATS[:2]:
        assert_refused(save(model, tmp_path / name), says)


def test_models_that_give_something_else_are_refused(keras, base, tmp_path):
    features = base()
    inner = keras.Model(features.input, features.get_layer("conv3_block2_out").output)
    assert_refused(save(inner, tmp_path / "model.keras"), "describes no layer post_bn")
    logits = keras.layers.Dense(3)(features.output)
    model = keras.Model(features.input, [logits, features.output])
    assert_refused(save(model, tmp_path / "model.h5"), "describes no model")


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_reading_takes_little_more_than_the_file(saved, name):
    path = saved[0] / name
    tracemalloc.start()
    read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= (2.2 if name.endswith(".keras") else 1.2) * path.stat().st_size


@pytest.mark.parametrize("name", ["out.h5", "out.weights.h5"])
def test_keras_loads_what_is_written(keras, saved, name, tmp_path):
    _, arrays = saved
    write(tmp_path / name, arrays)
    assert_same(read(tmp_path / name), arrays)
    model = model_of(keras, 50)
    model.load_weights(tmp_path / name)
    loaded = {
        f"{layer.name}/{variable.name}": keras.ops.convert_to_numpy(variable)
        for layer in model.layers
        for variable in layer.weights
    }
    assert_same(loaded, arrays)


def test_the_files_of_the_first_applications_are_read(tmp_path):
    """Bytes for names, which end in :0, and a layer's name twice."""
    kernel = np.float32([[1, 2], [3, 4]])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["layer_names"] = [b"input_1", b"predictions"]
        file.create_group("input_1")
        group = file.create_group("predictions")
        group.attrs["weight_names"] = [b"predictions/kernel:0"]
        group["predictions/kernel:0"] = kernel
    assert_same(read(tmp_path / "a.h5"), {"predictions/kernel": kernel})


# -- Networks that Keras has not -------------------------------------------------------------------


def test_other_networks_have_no_place_in_keras():
    spec = named("preact50", stride_on="3x3")
    with pytest.raises(UserError, match="layout keras has no such network: first_activation"):
        KERAS.check(spec)
    with pytest.raises(UserError, match=r"ResNet50V2, ResNet101V2, ResNet152V2 alone.*\(2, 2, 2,"):
        KERAS.check(named("preact18"))


# -- Files that are wrong --------------------------------------------------------------------------

# Those with weights of a ResNetV2 with one stage of one unit, in Keras' order.
LAYERS = {
    "conv1_conv": "Conv2D",
    "conv2_block1_preact_bn": "BatchNormalization",
    "conv2_block1_1_conv": "Conv2D",
    "conv2_block1_1_bn": "BatchNormalization",
    "conv2_block1_2_conv": "Conv2D",
    "conv2_block1_2_bn": "BatchNormalization",
    "conv2_block1_0_conv": "Conv2D",
    "conv2_block1_3_conv": "Conv2D",
    "post_bn": "BatchNormalization",
    "predictions": "Dense",
}
WEIGHTS = {
    "Conv2D": ("kernel", "bias"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Dense": ("kernel", "bias"),
}
UNBIASED = ("conv2_block1_1_conv", "conv2_block1_2_conv")


def small_arrays():
    """Weights of these layers, if of no shapes that fit."""
    names = [
        f"{layer}/{weight}"
        for layer, kind in LAYERS.items()
        for weight in WEIGHTS[kind][: 1 if layer in UNBIASED else None]
    ]
    rng = np.random.RandomState(0)
    return {
        name: rng.normal(size=(3, 3) if name.endswith("kernel") else 3).astype("float32")
        for name in names
    }


@pytest.fixture
def small(tmp_path):
    write(tmp_path / "small.h5", small_arrays())
    return tmp_path / "small.h5"


def numbered_file(source, path):
    """Writes the weights of a file in the second arrangement alone."""
    with h5py.File(source) as both, h5py.File(path, "w") as file:
        both.copy("layers", file)
    return path


@pytest.fixture
def numbered(small):
    return numbered_file(small, small.with_name("small.weights.h5"))


def assert_refused(path, match):
    with pytest.raises(UserError, match=match) as refusal:
        read(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_small_files_are_read(small, numbered):
    assert_same(read(small), small_arrays())
    assert_same(read(numbered), small_arrays())


def test_files_of_other_kinds_are_refused(tmp_path):
    for name, content in {"empty": b"", "text": b"hello", "pickle": b"\x80\x04N."}.items():
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path / name, "neither an HDF5 file nor a .keras archive")
    assert_refused(tmp_path / "missing.h5", "No such file")
    assert_refused(tmp_path, "Is a directory")


def test_a_file_that_is_cut_off_is_refused_wherever(small):
    content = small.read_bytes()
    for size in range(8, len(content), len(content) // 50):
        small.write_bytes(content[:size])
        assert_refused(small, "damaged|cut off")


def test_damage_is_told_in_one_line(small, numbered):
    rng, refusals = np.random.RandomState(0), []
    for path in (small, numbered):
        content = path.read_bytes()
        for _ in range(50):
            damaged = bytearray(content)
            for at in rng.randint(8, 4000, 8):
                damaged[at] = rng.randint(256)
            path.write_bytes(damaged)
            try:
                read(path)
            except UserError as error:
                refusals.append(str(error))
    assert len(refusals) > 50
    assert not [refusal for refusal in refusals if "\n" in refusal]


def put(path, name, **storage):
    """Replaces a dataset of a file by one that is stored in another way."""
    with h5py.File(path, "r+") as file:
        del file[name]
        if "link" in storage:
            file[name] = storage["link"]
        else:
            file.create_dataset(name, **storage)


KERNEL = "conv1_conv/conv1_conv/kernel"
DATA = np.zeros((3, 3), "float32")


@pytest.mark.parametrize(
    ("storage", "says"),
    [
        ({"data": DATA, "compression": "gzip"}, "compressed"),
        ({"data": DATA, "chunks": (1, 1)}, "in pieces"),
        ({"shape": (3, 3), "dtype": "f4", "external": [("/etc/hostname", 0, 36)]}, "elsewhere"),
        ({"shape": (1 << 20, 1 << 20), "dtype": "f4"}, "elsewhere"),
        ({"shape": (1 << 20, 1 << 20), "dtype": "f4", "chunks": (64, 64)}, "in pieces"),
        ({"data": DATA.astype("float64")}, "float64.; only float32"),
        ({"data": DATA.astype(">f4")}, ">f4.; only float32"),
        ({"data": np.array("code", object), "dtype": h5py.string_dtype()}, "object.; only float32"),
        ({"data": np.float32(1)}, r"of shape \(\)"),
        ({"shape": (0, 3), "dtype": "f4"}, "compressed|of shape"),
        ({"data": np.zeros((1,) * 5, "float32")}, "of shape"),
        ({"link": h5py.SoftLink("/post_bn")}, "has a link, kernel"),
        ({"link": h5py.ExternalLink("/etc/hostname", "/")}, "has a link, kernel"),
        ({"link": np.dtype("f4")}, "neither a group nor an array"),
    ],
    ids=str,
)
def test_arrays_that_are_stored_otherwise_are_refused(small, storage, says):
    put(small, KERNEL, **storage)
    assert_refused(small, says)


def test_arrays_of_several_files_are_refused(small):
    layout = h5py.VirtualLayout((3, 3), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "data", (3, 3))
    with h5py.File(small, "r+") as file:
        del file[KERNEL]
        file.create_virtual_dataset(KERNEL, layout)
    assert_refused(small, "compressed, in pieces or elsewhere")


def test_a_group_in_itself_is_refused(small):
    with h5py.File(small, "r+") as file:
        file["post_bn/post_bn/again"] = file["post_bn"]
    assert_refused(small, "without end")


def test_more_groups_than_any_network_has_are_not_opened(small):
    with h5py.File(small, "r+") as file:
        for number in range(10_000):
            file.create_group(f"post_bn/{number}")
    assert_refused(small, "without end")


def test_arrays_that_lie_in_one_place_are_refused(small):
    """Each taken out of the file, they would need any amount of memory."""
    with h5py.File(small, "r+") as file:
        file["big/kernel"] = np.zeros((1000, 100), "float32")
        for number in range(10):
            file[f"big{number}/kernel"] = file["big/kernel"]
    assert_refused(small, "share their place")


def test_names_that_would_not_print_are_refused(small):
    with h5py.File(small, "r+") as file:
        file["conv\n1/kernel"] = DATA
    assert_refused(small, r"has a name, 'conv\\n1'")


def test_a_model_beside_another_is_refused(small):
    with h5py.File(small, "r+") as file:
        file["resnet/conv1_conv/kernel"] = DATA
        file["resnet/post_bn/gamma"] = DATA
    assert_refused(small, "has two weights (conv1_conv/kernel|post_bn/gamma)")


def test_layers_of_other_networks_are_refused(numbered):
    with h5py.File(numbered, "r+") as file:
        file["layers/lstm/vars/0"] = DATA
    assert_refused(numbered, "layers/lstm")


@pytest.mark.parametrize("removed", ["conv2d_2", "batch_normalization_3"])
def test_too_few_layers_are_refused(numbered, removed):
    with h5py.File(numbered, "r+") as file:
        del file["layers"][removed]
    assert_refused(numbered, "no weights of post_bn|not the convolutions")


def description():
    """What Keras 2 says of that network."""
    entries = [{"class_name": "InputLayer", "config": {"name": IMAGE}, "inbound_nodes": []}]
    for name, layer in network([1]).items():
        entries.append(
            {
                "class_name": layer.kind,
                "config": {"name": name, **layer.settings},
                "inbound_nodes": [[[source, 0, 0, {}] for source in layer.inputs]],
            }
        )
    config = {"layers": entries, "output_layers": [["predictions", 0, 0]]}
    return {"class_name": "Functional", "config": config}


def archive(path, weights, config=None, **options):
    """A .keras archive of a file of weights, with a config.json that names its layers."""
    if config is None:
        config = json.dumps(description())
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("config.json", config)
        file.writestr("model.weights.h5", Path(weights).read_bytes())
    return path


def test_small_archives_are_read(numbered, tmp_path):
    assert_same(read(archive(tmp_path / "a.keras", numbered)), small_arrays())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{}", "describes no model"),
        ("[]", "describes no model"),
        ('{"class_name": "Model", "config": {"layers": 3}}', "describes no model"),
        ('{"class_name": "Model", "config": {"layers": [{}]}}', "describes no model"),
        ('{"class_name": "Mine", "config": {}}', "of class 'Mine', not of layers"),
        ('{"class_name": "Sequential", "config": {"layers": []}}', "no layer conv1_pad"),
        (
            '{"class_name": "Sequential", "config": {"layers": '
            '[{"class_name": "Lambda", "config": {"name": "code"}}]}}',
            "layer 'code' of kind 'Lambda'",
        ),
        ("import os", "is no JSON"),
        ("[" * 100_000, "all brackets|nested"),
        ("[" + "0," * (2 << 20) + "0]", "describes far more than a model"),
    ],
    ids=["empty", "list", "number", "nameless", "other", "none", "lambda", "code", "deep", "long"],
)
def test_archives_with_other_descriptions_are_refused(numbered, tmp_path, config, says):
    assert_refused(archive(tmp_path / "a.keras", numbered, config), says)


def test_archives_that_could_expand_are_refused(numbered, tmp_path):
    path = tmp_path / "a.keras"
    assert_refused(
        archive(path, numbered, compression=zipfile.ZIP_DEFLATED), "config.json compressed"
    )
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", "{}")
        bomb = zipfile.ZipInfo("model.weights.h5")
        bomb.compress_type = zipfile.ZIP_DEFLATED
        file.writestr(bomb, bytes(1 << 24))
    assert path.stat().st_size < 1 << 16
    assert_refused(path, "model.weights.h5 compressed")


def test_archives_that_are_damaged_are_refused(numbered, tmp_path):
    path = archive(tmp_path / "a.keras", numbered)
    content = path.read_bytes()
    for size in range(4, len(content), len(content) // 20):
        path.write_bytes(content[:size])
        assert_refused(path, "is a damaged archive")
    middle = len(content) // 2
    path.write_bytes(content[:middle] + b"!" + content[middle + 1 :])
    assert_refused(path, "Bad CRC-32")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("other", "")
    assert_refused(path, "no .keras archive.*config.json")


def test_weights_that_keras_has_no_place_for_are_not_written(tmp_path):
    with pytest.raises(UserError, match="no place for conv0"):
        write(tmp_path / "a.h5", {**small_arrays(), "conv0/weight": DATA})
    with pytest.raises(UserError, match="no place for post_bn/kernel"):
        write(tmp_path / "a.h5", {**small_arrays(), "post_bn/kernel": DATA})
    rest = {name: array for name, array in small_arrays().items() if "post_bn" not in name}
    with pytest.raises(UserError, match="needs weights of post_bn"):
        write(tmp_path / "a.h5", rest)


def test_without_h5py_the_way_out_is_named(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"need h5py: .* -m pip install .*\[keras\]"):
        read(small)
    with pytest.raises(UserError, match=r"need h5py: .* -m pip install .*\[keras\]"):
        write(small, small_arrays())
