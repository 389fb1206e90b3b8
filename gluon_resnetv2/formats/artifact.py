"""The product of training: NAME-symbol.json, NAME-0000.params and manifest.json in one folder."""

from __future__ import annotations

import collections
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gluon_resnetv2.cli import printable
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import recover_folder, sha256
from gluon_resnetv2.formats.manifest import MANIFEST, Manifest, read_manifest
from gluon_resnetv2.formats.pair import Pair, read_pair
from gluon_resnetv2.formats.params_file import PARAMS_BYTES
from gluon_resnetv2.formats.pretrained import find
from gluon_resnetv2.untrusted import quote

EPOCH = re.compile(r"(.+)-\d{4}\.params", re.DOTALL)
CALIBRATION = "calibration.params"  # real images, and what the network gives for them in float32
CALIBRATION_IMAGES = 4096  # at most


@dataclass(frozen=True)
class Artifact:
    """A symbol and its parameters, with a manifest if they are an export of ours."""

    symbol: Path
    params: Path
    manifest: Manifest | None

    @property
    def name(self) -> str:
        return self.symbol.name.removesuffix("-symbol.json")

    @property
    def folder(self) -> Path:
        return self.symbol.parent

    @property
    def onnx(self) -> Path | None:
        """The file of the same network in ONNX, if that was written too."""
        path = self.folder / f"{self.name}.onnx"
        return path if self.manifest and path.name in self.manifest.sha256 else None

    def own_manifest(self) -> Manifest:
        """The manifest, where only an export of ours will do.

        Raises:
            UserError: there is none.
        """
        if self.manifest is None:
            what = f"{self.folder} has no manifest.json, so is no export of ours"
            raise UserError(f"{what}; convert {self.params}")
        return self.manifest

    @property
    def classes(self) -> list[str]:
        """A name for each logit, with the logit's number where several have the same name.

        Only an artifact with a manifest has them.
        """
        names = self.own_manifest().classes
        several = set(self._shared_names)
        return [f"{n} ({index})" if n in several else n for index, n in enumerate(names)]

    @property
    def _shared_names(self):
        counts = collections.Counter(self.own_manifest().classes)
        return [name for name, count in counts.items() if count > 1]

    def warn(self) -> None:
        """Says on stderr, in a line each, what is allowed in a manifest and may be a mistake."""
        for name in self._shared_names[:1] if self.manifest else ():
            print(
                f"{self.folder}: several classes are called {quote(name)}; such names are shown "
                "with the classes' numbers",
                file=sys.stderr,
            )

    def does_not_run(self, reason: str) -> UserError:
        """To be raised where MXNet can't compute a pair here, in float16 for one."""
        return UserError(
            f"{self.symbol} does not run here: {reason}; "
            f"`convert {self.params} -o FOLDER` may make a float32 export of it"
        )

    def read(self, shape: tuple[int, ...] | None = None) -> Pair:
        """The pair, checked.

        Args:
            shape: of an image, for a pair without manifest: (C, H, W), or as its graph takes it,
                which may be (H, W, C); by default a usual one that fits.

        Raises:
            UserError: as `read_pair`; or the graph's answers are not float32.
        """
        sums = None
        if self.manifest:
            shape, sums = self.manifest.input.shape, self.manifest.sha256
        pair = read_pair(self.symbol, self.params, shape, sums)
        (answers,) = pair.types(pair.symbol())
        if answers not in (None, np.float32):  # which none of MXNet's ways out takes alike
            raise self.does_not_run(f"it answers in {np.dtype(answers)}, not in float32")
        return pair


def load(path: str | Path) -> Artifact:
    """Finds an export and checks its files against the manifest.

    Args:
        path: a folder of an export or of a run; a name of `pretrained.FOLDERS`, such as "digits";
            or one file of any pair, its -symbol.json (with the .params of the last epoch, which a
            line on stderr names where there are several) or its NAME-NNNN.params.

    Raises:
        UserError: there is no pair of files, or they are not what the manifest says.
    """
    path = find(path)
    for folder in (path, path / "export", path.parent):
        if not folder.exists():  # a process may have been killed as it replaced it
            recover_folder(folder)
    if not path.exists():
        raise UserError(f"{path} does not exist; name an export's folder")
    if path.is_dir() and (path / "export").is_dir():
        path = path / "export"
    epoch = EPOCH.fullmatch(path.name)
    if epoch and path.is_file():
        artifact = Artifact(path.with_name(f"{epoch[1]}-symbol.json"), path, None)
        if not artifact.symbol.exists():
            raise UserError(f"{path} has no {artifact.symbol.name} beside it")
    else:
        symbol = _symbol(path)
        artifact = Artifact(symbol, _last_params(symbol), None)
    if not (artifact.folder / MANIFEST).exists():
        return artifact
    manifest = read_manifest(artifact.folder)
    _check_files(artifact, manifest)
    return replace(artifact, manifest=manifest)


def _symbol(path):
    symbols = sorted(path.glob("*-symbol.json")) if path.is_dir() else [path]
    if len(symbols) != 1 or not symbols[0].name.endswith("-symbol.json"):
        raise UserError(f"{path} is no export: it needs one NAME-symbol.json, and its parameters")
    return symbols[0]


def _last_params(symbol):
    name = symbol.name.removesuffix("-symbol.json")
    epochs = ((EPOCH.fullmatch(path.name), path) for path in symbol.parent.iterdir())
    params = sorted(path for epoch, path in epochs if epoch and epoch[1] == name)
    if not params:
        raise UserError(f"{symbol} has no .params file beside it")
    if len(params) > 1:
        told = (
            f"{params[-1]} is taken, the last of {len(params)} epochs; "
            f"for another, name its .params, such as {params[0]}"
        )
        print(printable(told), file=sys.stderr)
    return params[-1]


def _check_files(artifact, manifest):
    needed = {artifact.symbol.name, artifact.params.name}
    if manifest.precision != "float32":
        needed.add(CALIBRATION)
    known = needed | {CALIBRATION, f"{artifact.name}.onnx", MANIFEST}
    if not needed <= set(manifest.sha256) <= known:
        raise UserError(f"{artifact.folder / MANIFEST} describes other files; export again")
    for name, expected in manifest.sha256.items():
        if name == MANIFEST:
            continue
        file = artifact.folder / name
        if not file.is_file():
            raise UserError(f"{file} is missing; export again")
        if file.stat().st_size > PARAMS_BYTES:  # before it is read for its sum
            raise UserError(f"{file} has more than {PARAMS_BYTES} bytes, which are the most")
        if sha256(file) != expected:
            raise UserError(
                f"{file} is not the file that was exported (its SHA-256 differs from the "
                "manifest's); export again"
            )
