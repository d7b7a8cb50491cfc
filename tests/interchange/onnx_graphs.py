"""Tiny ONNX files, built node by node."""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from stalwart.interchange import OnnxSession, read_onnx


def node(op, *inputs, outputs=("y",), **attributes):
    return helper.make_node(op, list(inputs), list(outputs), name=f"{op}_of_{outputs[0]}", **attributes)


def model(nodes, shape, constants=None, opset=13, output="y", kind=TensorProto.FLOAT):
    """Return a model with the input ``x`` of the given shape; the output's is inferred."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    result = proto.graph.output[0].type.tensor_type
    if not result.HasField("shape"):  # inference gave up; a shape of open axes is valid too
        result.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in shape)
    return proto


def save(proto, folder: Path) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def numbers(*shape, seed=0, low=-1.0, high=1.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def agree(proto, folder, low=-2.0, high=2.0, tolerance=2e-6):
    """Import the model and compare a batch of three with three runs of onnxruntime; return the network."""
    path = save(proto, folder)
    net = read_onnx(path).eval()
    x = torch.from_numpy(numbers(3, *net.input_shape, seed=1, low=low, high=high))
    with torch.no_grad():
        ours = net(x)
    theirs = OnnxSession(path).run(x)
    assert ours.shape == theirs.shape == (3, net.outputs)
    assert float((ours - theirs).abs().max()) <= tolerance * max(1.0, float(theirs.abs().max()))
    assert not torch.equal(theirs[0], theirs[1])
    return net


__all__ = ["TensorProto", "agree", "helper", "model", "node", "numbers", "numpy_helper", "onnx", "save"]
