"""Files that version 0.1 wrote go on being read. `fixtures/v0.1` is a run of it on the digits."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_resnetv2.checkpoint import State
from gluon_resnetv2.engines.predictor import Predictor
from gluon_resnetv2.formats.artifact import load
from gluon_resnetv2.study import plan
from gluon_resnetv2.training.options import run_recipe
from gluon_resnetv2.untrusted import Fault

ROOT = Path(__file__).parent.parent
OLD = ROOT / "tests/fixtures/v0.1"


@pytest.mark.parametrize("name", ["run", "pixels", "softmax", "fused"])
def test_predictor_takes_an_old_export(name):
    # It holds the pair against the logits that version 0.1 recorded, and raises if they differ.
    assert "float32" in Predictor(load(OLD / name)).form


def test_the_manifest_of_an_old_int8_export_is_read():
    assert load(OLD / "int8").manifest.precision == "int8"


def test_an_old_recipe_means_what_it_meant():
    recipe = run_recipe(OLD / "run")
    assert (recipe.model, recipe.num_epochs, recipe.lr_step_epochs) == ("preact8", 15, (9.0, 13.0))


def test_an_old_state_is_written_as_it_was_read():
    values = json.loads((OLD / "run/checkpoints/step-00000322/state.json").read_text())
    written = json.loads(json.dumps(State.from_dict(values).to_dict()))
    # What 0.1 did not say.
    values["input"] |= {"interpolation": "bilinear", "stretch": False}
    values["engine"] = "mxnet"
    assert {**written, "spec": None} == {**values, "spec": None}  # which has more fields by now
    wrong = {**values, "input": {**values["input"], "std": [0, 1, 1]}}
    with pytest.raises(Fault, match=r"has a wrong input\.std"):
        State.from_dict(wrong)


def test_an_old_checkpoint_goes_on_to_what_version_0_1_ended_with(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(OLD / "run", run)
    expected = mx.nd.load(str(OLD / "run/export/preact8-0000.params"))
    shutil.rmtree(run / "export")
    command = [sys.executable, str(ROOT / "train/cifar.py"), "--resume", str(run)]
    subprocess.run(command, check=True, capture_output=True)
    found = mx.nd.load(str(run / "export/preact8-0000.params"))
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(
            found[name].asnumpy(), expected[name].asnumpy(), rtol=2e-3, atol=2e-4
        )


def test_a_study_finds_the_runs_of_version_0_1(digits_study):
    """Its folders are named by what is in their recipes, which has grown since."""
    folders = list((digits_study / "runs").iterdir())
    assert len(folders) > 50
    for folder in folders:
        assert plan._name(run_recipe(folder)) == folder.name
