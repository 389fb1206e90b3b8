"""What makes an export a model of MLServer's. Needs no MLServer, so that any machine can export."""

from __future__ import annotations

import math

from gluon_resnetv2.formats.artifact import Artifact

MAX_BATCH = 64  # images in one request, and computed at once


def settings_for(artifact: Artifact) -> dict[str, dict]:
    """The files that MLServer reads in an export's folder. Ports come from its environment.

    MLServer's own batching has to be off: it joins requests before anyone has checked them, so that
    one that is wrong changes its neighbours' numbers. `mlserver.Runtime` joins checked ones.
    """
    images = 4 * MAX_BATCH * math.prod(artifact.own_manifest().input.shape)  # bytes
    return {
        "model-settings.json": {
            "name": artifact.name,
            "implementation": "gluon_resnetv2.serving.mlserver.Runtime",
            "platform": "mxnet",
            "max_batch_size": 0,
            "parameters": {"uri": "."},
        },
        "settings.json": {
            "host": "127.0.0.1",
            # A worker process computes no faster, and every request would be copied to it.
            "parallel_workers": 0,
            "debug": False,
            "grpc_max_message_length": images + (16 << 20),  # and room for image files
        },
    }
