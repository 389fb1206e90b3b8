"""Weights that come with the package, taken by name."""

from __future__ import annotations

import json
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2 import data, get_model
from gluon_resnetv2.data import idx
from gluon_resnetv2.engines.predictor import Predictor
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.formats import pretrained
from gluon_resnetv2.formats.artifact import load
from gluon_resnetv2.training.options import read_options


@pytest.mark.parametrize("name", pretrained.FOLDERS)
def test_they_classify_the_images_that_they_were_not_trained_on(name, capsys):
    artifact = load(name)
    assert "the weights that come with this package" in capsys.readouterr().err
    if name in idx.SOURCES and not Path(idx.SOURCES[name].installed).is_dir():
        pytest.skip("no Fashion-MNIST; on Debian: apt install dataset-fashion-mnist")
    test = data.load(name).test
    images = test.images[:256].transpose(0, 3, 1, 2).astype("float32")
    described = artifact.own_manifest().input
    mean, std = (np.reshape(numbers, (1, -1, 1, 1)) for numbers in (described.mean, described.std))
    logits = Predictor(artifact).run(((images - mean) / std).astype("float32"))
    assert np.mean(logits.argmax(1) == test.labels[:256]) > 0.9


@pytest.mark.parametrize("name", pretrained.FOLDERS)
def test_their_manifests_name_the_command_and_nothing_of_the_machine(name):
    text = (pretrained.FOLDER / name / "manifest.json").read_text()
    manifest = json.loads(text)
    words = manifest["command"].split()
    assert words[:2] == ["resnetv2", "train"]
    given = dict(zip((word.strip("-") for word in words[2::2]), words[3::2]))
    recipe, _ = read_options({"resume": None, **given})
    fields = {key: value for key, value in manifest["recipe"].items() if key != "format"}
    assert recipe.differences(type(recipe).from_dict(fields)) == {}
    assert not [word for word in ("/tmp", "/home", "/work", "/root") if word in text]


def test_a_path_of_that_name_wins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    with pytest.raises(UserError, match="digits is no export"):
        load("digits")
    assert "digits is the one here" in capsys.readouterr().err


def test_a_run_and_a_network_begin_with_them(capsys):
    recipe, _ = read_options({"recipe": None, "resume": None, "init_from": "digits"})
    assert (recipe.init_from, recipe.model) == ("digits", "preact20")
    net = get_model("preact20", pretrained="digits")
    images = mx.nd.random.normal(shape=(2, 3, 32, 32))
    expected = Predictor(load("digits")).run(images.asnumpy())
    np.testing.assert_allclose(net(images).asnumpy(), expected, rtol=1e-4, atol=1e-5)


def test_some_come_with_the_package():
    assert list(pretrained.FOLDERS) == ["digits", "fashion-mnist"]
