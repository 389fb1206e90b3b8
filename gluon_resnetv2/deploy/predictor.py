"""Images in, probabilities out, from an exported pair."""

from __future__ import annotations

import mxnet as mx
import numpy as np

from gluon_resnetv2.deploy.artifact import Artifact
from gluon_resnetv2.deploy.images import read_image
from gluon_resnetv2.deploy.runtimes import import_block
from gluon_resnetv2.errors import UserError


class Predictor:
    """Runs an export through SymbolBlock, which never fuses and so is right for every pair.

    Raises:
        UserError: the pair has no manifest, which says how images are prepared.
    """

    def __init__(self, artifact: Artifact):
        if artifact.manifest is None:
            raise UserError(
                f"{artifact.folder} has no manifest.json; predict needs an export of ours"
            )
        self.classes = artifact.manifest["classes"]
        self._input = artifact.manifest["input"]
        self._block, _ = import_block(str(artifact.symbol), str(artifact.params))
        self._block.hybridize(static_alloc=True)

    def read(self, path) -> np.ndarray:
        """One image file as `probabilities` takes it: (C, H, W) in 0..255.

        Raises:
            UserError: the file can't be read as an image.
        """
        return read_image(path, self._input["shape"], self._input["crop"])

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities (N, classes) of images (N, C, H, W) with values in 0..255."""
        mean, std = (np.reshape(self._input[key], (-1, 1, 1)) for key in ("mean", "std"))
        normalised = ((np.asarray(images) - mean) / std).astype("float32")
        return mx.nd.softmax(self._block(mx.nd.array(normalised))).asnumpy()

    def top(self, images: np.ndarray, count: int = 5) -> list[list[tuple[str, float]]]:
        """The `count` likeliest (class, probability) of each image, likeliest first."""
        rows = self.probabilities(images)
        return [
            [(self.classes[i], float(row[i])) for i in np.argsort(-row, kind="stable")[:count]]
            for row in rows
        ]
