"""An archive for multi-model-server, MXNet's historical server, and the handler it calls there."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from gluon_resnetv2.deploy.artifact import Artifact, load
from gluon_resnetv2.deploy.predictor import Predictor
from gluon_resnetv2.errors import UserError
from gluon_resnetv2.files import whole_file

_predictor = None  # a worker of the server is a process that serves one archive


def archive(artifact: Artifact, path: str | Path) -> None:
    """Writes a .mar of `artifact`, for servers whose Python has this package.

    Raises:
        OSError: `path` can't be written; it is then as it was.
    """
    described = {
        "specificationVersion": "1.0",
        "modelServerVersion": "1.0",
        "runtime": "python",
        "engine": {"engineName": "MXNet"},
        "model": {"modelName": artifact.name, "handler": f"{__name__}:handle"},
    }
    named = ["manifest.json", *artifact.manifest["sha256"]] if artifact.manifest else []
    files = {artifact.symbol, artifact.params, *(artifact.folder / name for name in named)}
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
        file.writestr("MAR-INF/MANIFEST.json", json.dumps(described, indent=1))
        for source in sorted(files):
            file.write(source, source.name)


def handle(data: list[dict] | None, context) -> list[dict]:
    """The likeliest five classes of each request's image file; the server's entry point.

    Args:
        data: of each request the parts of its body, by name; None asks to load the model.
        context: what the server knows: the archive's folder, and each answer's status.
    """
    global _predictor
    if data is None:
        _predictor = Predictor(load(context.system_properties["model_dir"]))
        return []
    answers = []
    for index, parts in enumerate(data):
        try:
            image = _predictor.read(io.BytesIO(next(iter(parts.values()), b"")))
            answers.append(dict(_predictor.top(image[None])[0]))
        except (UserError, TypeError) as error:  # the others of the batch want their answer
            context.set_response_status(400, "Bad Request", index)
            answers.append({"error": str(error)})
    return answers
