"""The runtime for MLServer and KServe: the protocol over gRPC and REST, on our predictor.

`mlserver start EXPORT` serves an export that holds the files of `mlserver_settings`.
"""

from __future__ import annotations

import asyncio
import base64
import json

import numpy as np

from gluon_resnetv2.engines.predictor import Predictor
from gluon_resnetv2.errors import UserError, install
from gluon_resnetv2.exports.mlserver_settings import MAX_BATCH
from gluon_resnetv2.formats.artifact import load
from gluon_resnetv2.serving.batching import Closed, Full
from gluon_resnetv2.serving.protocol import NUMBERS, Refused, decode, encode
from gluon_resnetv2.serving.service import Metrics, Model

try:
    from mlserver import MLModel
    from mlserver.errors import MLServerError
    from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor, RequestInput
    from mlserver.utils import get_model_uri
except ImportError:
    raise UserError(f"MLServer is not installed: {install('mlserver')}") from None

QUEUE = 1024  # images that wait


class Runtime(MLModel):
    """Serves the export in `parameters.uri` as our own server does: the same inputs and outputs."""

    _model: Model | None = None  # until it is loaded; MLServer unloads what failed to load, too

    async def load(self) -> bool:
        """Raises UserError where there is no export that computes what it should."""
        folder = await get_model_uri(self.settings)
        predictor = await asyncio.to_thread(lambda: Predictor(load(folder), max_batch=MAX_BATCH))
        self._model = Model(self.name, predictor, Metrics(), QUEUE)
        metadata = self._model.interface.metadata()
        self.inputs = [MetadataTensor(**tensor) for tensor in metadata["inputs"]]
        self.outputs = [MetadataTensor(**tensor) for tensor in metadata["outputs"]]
        return True

    async def unload(self) -> bool:
        if self._model:
            await asyncio.to_thread(self._model.close)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Raises MLServerError with what is wrong with the request, or 503 where too many wait."""
        assert self._model, "MLServer asks none that is not loaded"
        interface = self._model.interface
        try:
            request = decode(*_wire(payload), interface)
            body, _ = encode(request, await self._model.outputs(request), interface)
        except Refused as error:
            raise MLServerError(str(error), error.status) from None
        except (Full, Closed) as error:
            raise MLServerError(str(error), 503) from None
        response = InferenceResponse.model_validate_json(body)
        response.model_version = self.version
        for output in response.outputs:
            if output.datatype == "BYTES":  # which gRPC takes as bytes alone
                output.data.root = [text.encode() for text in output.data]
        return response


def _wire(payload: InferenceRequest) -> tuple[bytes, int]:
    """What MLServer has parsed, as the body that `decode` judges, and the size of its JSON.

    Over gRPC, MLServer checks neither data against shapes nor numbers against datatypes.

    Raises:
        Refused: the data is none that could be written so.
    """
    tensors = [_packed(tensor) for tensor in payload.inputs]
    described = {
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": tensor.shape,
                "parameters": {"binary_data_size": len(packed)},
            }
            for tensor, packed in zip(payload.inputs, tensors)
        ],
        "outputs": [
            {
                "name": output.name,
                "parameters": {"classification": getattr(output.parameters, "classification", 0)},
            }
            for output in payload.outputs or ()
        ],
    }
    text = json.dumps(described).encode()
    return b"".join((text, *tensors)), len(text)


def _packed(tensor: RequestInput) -> bytes:
    """The values of a tensor as the protocol's binary extension has them."""
    datatype, data = tensor.datatype, tensor.data.root
    where = f"data of input {tensor.name[:60]}"
    if datatype == "BYTES":
        try:  # gRPC has bytes, JSON their base64
            files = [
                file if isinstance(file, bytes) else base64.b64decode(file, validate=True)
                for file in data
            ]
        except (TypeError, ValueError):
            raise Refused(f"{where} must be strings of base64") from None
        return b"".join(len(file).to_bytes(4, "little") + file for file in files)
    if datatype not in NUMBERS:
        return b""  # `decode` names the datatype
    try:
        values = np.asarray(data)
    except ValueError:
        raise Refused(f"{where} is not nested as its shape says") from None
    if values.ndim != 1 and list(values.shape) != tensor.shape:
        raise Refused(f"{where} is not nested as its shape says")
    if values.dtype.kind not in ("iu" if datatype == "UINT8" else "iuf") and values.size:
        raise Refused(f"{where} has values that are not {datatype}")
    if datatype == "UINT8" and values.size and not 0 <= values.min() <= values.max() <= 255:
        raise Refused(f"{where} has numbers outside of what UINT8 can hold")
    with np.errstate(over="ignore"):  # to infinity, which `decode` refuses
        return values.astype(NUMBERS[datatype]).tobytes()
