"""ONNX, for every runtime that is not MXNet's: written by MXNet's exporter, mended here.

Left alone, the exporter declares the newest opset of the installed `onnx` although it translates to
opset 13, takes the gammas that `fix_gamma` overrides at their stored value, and lists every
parameter as an input of the graph, which keeps runtimes from folding constants.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import mxnet as mx
import numpy as np

from gluon_resnetv2 import __version__
from gluon_resnetv2.errors import UserError, install
from gluon_resnetv2.files import plain, whole_file
from gluon_resnetv2.formats.manifest import Manifest

OPSET = 13  # the newest that MXNet 1.9.1 translates to
IR_VERSION = 7  # of the file format, as of that opset (ONNX 1.8, 2020)


def export_onnx(
    symbol: mx.sym.Symbol, params: Mapping[str, mx.nd.NDArray], manifest: Manifest, path: str | Path
) -> None:
    """Writes a network as an ONNX model of any number of images, checked by ONNX's own checker.

    Its input is `data`, float32 (N, C, H, W), as `manifest.input` says; its output (N, classes)
    has the name `manifest.output`. Classes and input are in the model's metadata, as JSON.

    Args:
        symbol: the plain float32 graph; preprocessing and softmax may be part of it.
        params: every parameter and moving statistic by its name.
        manifest: its name, output, classes and input, and what form the graph has.

    Raises:
        UserError: no `onnx` is installed that MXNet can use, or the graph is of another form.
        OSError: `path` can't be written; it is then as it was.
    """
    exporter = _exporter()  # first: without it nothing else matters
    if manifest.precision != "float32" or manifest.fused:
        form = "fused" if manifest.precision == "float32" else manifest.precision
        raise UserError(f"ONNX is exported from the plain float32 graph, not from a {form} one")

    import onnx

    ones = {gamma: mx.nd.ones_like(params[gamma]) for gamma in _fixed_gammas(symbol)}
    image = manifest.input.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of onnx.mapping, before 1.19
        try:
            graph = exporter.create_onnx_graph_proto(
                symbol,
                {**params, **ones},
                in_shapes=[(1, *image)],
                in_types=[onnx.TensorProto.FLOAT],
                opset_version=OPSET,
                dynamic=True,
                dynamic_input_shapes=[("N", *image)],
            )
        except AttributeError as error:  # its word for an operator without translation
            raise UserError(f"MXNet can't write this graph as ONNX: {error}") from None
    _mend(graph, manifest)
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="gluon_resnetv2",
        producer_version=__version__,
        doc_string=f"{manifest.name}: {manifest.output} of {len(manifest.classes)} "
        "classes; how images are prepared is in the metadata",
    )
    values = manifest.to_dict()
    metadata = {key: json.dumps(values[key], default=plain) for key in ("classes", "input")}
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    with whole_file(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


@functools.cache
def _exporter():
    """MXNet's exporter, with a translation of `mean` that checkers of any opset take."""
    try:
        import onnx
    except ImportError:
        raise UserError(f"ONNX export needs onnx: {install('onnx')}") from None
    _give_mapping_back(onnx)
    from mxnet.onnx.mx2onnx._export_onnx import MXNetGraph

    theirs = MXNetGraph.registry_[OPSET]["mean"]

    # ReduceMean takes its axes in another way since opset 18, and the exporter checks its graph
    # against the newest opset before we can say which one it is of.
    @MXNetGraph.register("mean", OPSET)
    def mean(node, **kwargs):
        attributes = node.get("attrs", {})
        axes = ast.literal_eval(attributes.get("axis", "None"))
        if axes != (2, 3) or attributes.get("keepdims") == "True":
            return theirs(node, **kwargs)
        ((source, index, *_),) = node["inputs"]
        image, name = kwargs["outputs_lookup"][source][index].name, node["name"]
        return [
            onnx.helper.make_node("GlobalAveragePool", [image], [f"{name}_pool"]),
            onnx.helper.make_node("Flatten", [f"{name}_pool"], [name], name=name),
        ]

    return MXNetGraph()


def _give_mapping_back(onnx):
    """`onnx.mapping`, which MXNet's exporter reads, and which onnx 1.19 dropped."""
    if importlib.util.find_spec("onnx.mapping"):
        return
    dtypes = [*map(np.dtype, ("float16", "float32", "float64", "int32", "int64"))]
    numbers = [*map(onnx.helper.np_dtype_to_tensor_dtype, dtypes)]
    onnx.mapping = SimpleNamespace(
        NP_TYPE_TO_TENSOR_TYPE=dict(zip(dtypes, numbers)),
        TENSOR_TYPE_TO_NP_TYPE=dict(zip(numbers, dtypes)),
    )


def _fixed_gammas(symbol: mx.sym.Symbol) -> list[str]:
    """The gammas that batch normalisations take for 1, whatever is stored."""
    nodes = json.loads(symbol.tojson())["nodes"]
    return [
        nodes[node["inputs"][1][0]]["name"]
        for node in nodes
        if node["op"] == "BatchNorm" and node["attrs"].get("fix_gamma", "True") in ("True", "1")
    ]


def _mend(graph, manifest) -> None:
    """Leaves the images as the only input, and gives the output its name and shape."""
    constants = {tensor.name for tensor in graph.initializer}
    images = [tensor for tensor in graph.input if tensor.name not in constants]
    del graph.input[:]
    graph.input.extend(images)
    graph.name = manifest.name
    (output,) = graph.output
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [manifest.output if name == output.name else name for name in names]
    output.name = manifest.output
    batch, classes = output.type.tensor_type.shape.dim
    batch.dim_param, classes.dim_value = "N", len(manifest.classes)
