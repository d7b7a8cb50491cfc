"""Whole networks read from ONNX: what comes out, and the files that are refused."""

import gzip
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx_graphs import agree, model, node, numbers, save
from torch import nn

from stalwart.core.errors import FileError, InputError, UsageError
from stalwart.interchange import OnnxSession, check_against_onnxruntime, read_onnx


def small():
    """Return a convolutional network with batch normalisation, a residual sum and a dense head."""
    nodes = [
        node("Conv", "x", "w", outputs=("a",), pads=[1, 1, 1, 1]),
        node("BatchNormalization", "a", "s", "b", "m", "v", outputs=("n",)),
        node("Relu", "n", outputs=("r",)),
        node("Conv", "r", "w2", "b", outputs=("c",), pads=[0, 0, 1, 1]),
        node("Add", "c", "r", outputs=("d",)),
        node("Flatten", "d", outputs=("f",)),
        node("MatMul", "f", "h", outputs=("g",)),
        node("Add", "g", "hb"),
    ]
    constants = {
        "w": numbers(3, 2, 3, 3),
        "s": numbers(3, low=0.5),
        "b": numbers(3, seed=2),
        "m": numbers(3, seed=3),
        "v": numbers(3, low=0.5),
        "w2": numbers(3, 3, 2, 2, seed=4),
        "h": numbers(48, 5, seed=5),
        "hb": numbers(5, seed=6),
    }
    return nodes, constants


def small_net(folder, shape=(1, 2, 4, 4)):
    nodes, constants = small()
    return agree(model(nodes, list(shape), constants), folder), constants


def test_a_network_holds_the_weights_of_the_file_and_knows_its_sizes(tmp_path):
    net, constants = small_net(tmp_path)
    assert (net.input_shape, net.outputs, net.opset) == ((2, 4, 4), 5, 13)
    stored = dict(net.named_parameters())
    assert torch.equal(stored["steps.Conv_0.weight"], torch.from_numpy(constants["w"]))
    assert (
        sum(parameter.numel() for parameter in stored.values())
        == sum(array.size for name, array in constants.items() if name not in "mv") + 3
    )  # the vector b is used twice
    assert {name for name, _ in net.named_buffers()} == {
        "steps.BatchNormalization_1.running_mean",
        "steps.BatchNormalization_1.running_var",
    }
    assert "Conv_of_a" in repr(net)


def test_rows_do_not_depend_on_the_batch(tmp_path):
    net, _ = small_net(tmp_path, ("batch", 2, 4, 4))
    x = torch.from_numpy(numbers(5, 2, 4, 4)).double()
    net.double()
    alone = torch.cat([net(row[None]) for row in x])
    torch.testing.assert_close(net(x), alone, rtol=1e-13, atol=0)
    assert net(x).dtype == torch.float64


def test_it_exports_for_any_batch_and_trains(tmp_path):
    net, _ = small_net(tmp_path)
    x = torch.from_numpy(numbers(4, 2, 4, 4))
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: batch},), strict=False).module()
    more = torch.from_numpy(numbers(7, 2, 4, 4, seed=8))
    torch.testing.assert_close(exported(more), net(more))
    net(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


def test_inputs_of_every_form(tmp_path):
    dense = [node("MatMul", "x", "w", outputs=("h",)), node("Relu", "h")]
    assert agree(model(dense, [4], {"w": numbers(4, 3)}), tmp_path).input_shape == (4,)
    assert agree(model(dense, [1, 4], {"w": numbers(4, 3)}), tmp_path).input_shape == (4,)
    assert agree(model(dense, [1, 1, 1, 4], {"w": numbers(4, 3)}), tmp_path).input_shape == (1, 1, 4)
    assert agree(model(dense, [2, 4], {"w": numbers(4, 3)}), tmp_path).outputs == 6
    net = read_onnx(save(model(dense, [4], {"w": numbers(4, 3)}), tmp_path))
    with pytest.raises(InputError, match=r"inputs of shape \[B, 4\], got \[2, 3\]"):
        net(torch.zeros(2, 3))


def test_compressed_files_and_weights_listed_as_inputs(tmp_path):
    proto = model([node("MatMul", "x", "w")], [1, 4], {"w": numbers(4, 3)}, opset=9)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    plain = read_onnx(save(proto, tmp_path))
    packed = tmp_path / "net.onnx.gz"
    packed.write_bytes(gzip.compress(proto.SerializeToString()))
    x = torch.from_numpy(numbers(2, 4))
    assert torch.equal(plain(x), read_onnx(packed)(x))
    torch.testing.assert_close(OnnxSession(packed).run(x), plain(x))


def test_what_the_output_does_not_need_is_left_out(tmp_path):
    nodes = [node("Relu", "x", outputs=("unused",)), node("Tanh", "x")]
    assert list(read_onnx(save(model(nodes, [1, 4]), tmp_path)).steps) == ["Tanh_0"]


@pytest.mark.parametrize(
    ("nodes", "constants", "message"),
    [
        (
            [node("LSTM", "x", "w", "w", hidden_size=2)],
            {"w": numbers(4)},
            r"node 'LSTM_of_y' uses the operator LSTM \(opset 13\)",
        ),
        ([node("Softmx", "x")], {}, r"uses the operator Softmx .* Did you mean 'Softmax'\?"),
        ([node("Gemm", "x", "w", domain="my.own")], {}, r"uses the operator my\.own\.Gemm"),
        ([node("Where", "x", "x", "x")], {}, "supported for constants only"),
        ([node("Softmax", "x", axis=0)], {}, r"node 'Softmax_of_y' \(Softmax, opset 13\).* batch axis"),
        ([node("Transpose", "x", perm=[1, 0])], {}, "batch axis"),
        ([node("Concat", "x", "x", axis=0)], {}, "batch axis"),
        ([node("ReduceSum", "x")], {}, "batch axis"),
        ([node("Gather", "x", "i")], {"i": np.array([0, 0])}, "batch axis"),
        ([node("Pad", "x", "p")], {"p": np.array([1, 0, 0, 0])}, "batch axis"),
        ([node("Slice", "x", "p", "i")], {"p": np.array([0]), "i": np.array([0])}, "nothing is left"),
        ([node("Gemm", "x", "w", transA=1)], {"w": numbers(1, 3)}, "transposes its first input"),
        ([node("Gemm", "x", "x", transB=1)], {}, "input 1 depends on the network's input"),
        ([node("MatMul", "x", "w")], {"w": numbers(3, 2)}, r"shapes \[1, 4\] and \[3, 2\] cannot be multiplied"),
        ([node("Reshape", "x", "s")], {"s": np.array([1, 3])}, r"\[1, 4\] cannot take the shape \[1, 3\]"),
        ([node("Reshape", "x", "s")], {"s": np.array([-1, 3])}, "cannot take the shape"),
        ([node("Add", "x", "w")], {"w": numbers(1, 3)}, "do not fit together"),
        ([node("Add", "x", "w")], {"w": np.array([1e-40, 1.0, 2.0, 1 / 3])}, "float64, with constants"),
        ([node("Relu", "c", outputs=("z",)), node("Add", "x", "z")], {"c": numbers(4)}, "all its inputs are constant"),
        ([node("Identity", "c")], {"c": numbers(1, 4)}, "output does not depend on the input"),
        ([node("Clip", "x", "a", "b")], {"a": np.float32(1), "b": np.float32(0)}, "lower limit 1.0 is above"),
        ([node("Dropout", "x", "r", "t")], {"r": np.float32(0.5), "t": np.array(True)}, "training mode"),
        ([node("Cast", "x", to=7)], {}, "float32 or float64"),
        ([node("Dropout", "x", outputs=("y", "mask"))], {}, "only its first 1 outputs"),
        ([node("MaxPool", "x", kernel_shape=[2])], {}, "pools take"),
        ([node("Pad", "x", "p", mode="reflect")], {"p": np.array([0, 1, 0, 1])}, "attribute mode=reflect"),
        ([node("Add", "x", "w")], {"w": np.array([1.0, np.nan, 0, 0], np.float32)}, "'w' holds NaN"),
        ([node("Add", "x", "w")], {"w": np.zeros(4, np.float16)}, "type FLOAT16"),
    ],
)
def test_a_graph_that_cannot_be_read_names_its_node(nodes, constants, message, tmp_path):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, None])],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("my.own", 1)]
    path = save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_onnx(path)
    assert str(caught.value).endswith(".")


def test_an_unknown_attribute_is_refused(tmp_path):
    # The checker knows which attributes an operator has; this one exists, but none of the functions here reads it.
    one = node("Resize", "x", "", "s", coordinate_transformation_mode="asymmetric", nearest_mode="floor", antialias=1)
    proto = model([one], [1, 1, 2, 2], {"s": np.array([1, 1, 2, 2], np.float32)}, opset=18)
    with pytest.raises(InputError, match="attribute antialias=1 is not supported"):
        read_onnx(save(proto, tmp_path))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1, None], "may\\s+be left open"),
        ([None], "may be left open"),
        ([1, 0], "may be left open"),
        ([1, 2**31], "too large"),
    ],
)
def test_input_shapes_must_be_fixed(shape, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_onnx(save(model([node("Relu", "x")], shape), tmp_path))


def test_several_inputs_or_outputs_and_other_types_are_refused(tmp_path):
    proto = model([node("Relu", "x")], [1, 4])
    proto.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4]))
    with pytest.raises(InputError, match="2 inputs and 1 outputs"):
        read_onnx(save(proto, tmp_path))
    proto = model([node("Relu", "x")], [1, 4])
    proto.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]))
    with pytest.raises(InputError, match="1 inputs and 2 outputs"):
        read_onnx(save(proto, tmp_path))
    with pytest.raises(InputError, match="2 inputs|1 inputs and 2"):
        OnnxSession(save(proto, tmp_path))
    proto = model([node("Relu", "x")], [1, 4])
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(InputError, match="not a float32 tensor"):
        read_onnx(save(proto, tmp_path))


def test_hostile_files_are_refused(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(numbers(4).tobytes())
    proto = model([node("Add", "x", "w")], [1, 4], {"w": numbers(4)})
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="secret")
    for reader in (read_onnx, OnnxSession):
        with pytest.raises(InputError, match="'w' in another file, which is never opened"):
            reader(save(proto, tmp_path))

    # A shape that promises more than is there.
    proto = model([node("Add", "x", "w")], [1, 4], {"w": numbers(4)})
    proto.graph.initializer[0].dims[0] = 2**40
    with pytest.raises(InputError, match="'w'|data size"):
        read_onnx(save(proto, tmp_path))

    # Small constants that make a huge one.
    nodes = [node("ConstantOfShape", "n", outputs=("c",)), node("Mul", "x", "c")]
    proto = model([node("Relu", "x")], [1, 4], {"n": np.array([2**20, 2**20])})
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    with pytest.raises(InputError, match="makes a constant of"):
        read_onnx(save(proto, tmp_path))
    nodes = [node("Expand", "x", "n", outputs=("c",)), node("Relu", "c")]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array([2**20, 2**20, 1, 1]), "n"))
    with pytest.raises(InputError, match="empty or too large"):
        read_onnx(save(proto, tmp_path))

    # A function of the file's own under a standard name.
    proto = model([node("Relu", "x")], [1, 4])
    body = [helper.make_node("Neg", ["a"], ["b"])]
    proto.functions.append(helper.make_function("", "Relu", ["a"], ["b"], body, [helper.make_opsetid("", 13)]))
    with pytest.raises(InputError, match="functions of its own"):
        read_onnx(save(proto, tmp_path))

    # A nested graph with an external tensor in it.
    inner = helper.make_graph([], "inner", [], [], [weight])
    proto = model([node("Relu", "x")], [1, 4])
    proto.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))
    with pytest.raises(InputError, match="never opened"):
        read_onnx(save(proto, tmp_path))


def test_broken_files_are_refused(tmp_path):
    path = save(model([node("Relu", "x")], [1, 4]), tmp_path)
    with pytest.raises(FileError, match="cannot read ONNX file"):
        read_onnx(tmp_path / "none.onnx")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(FileError, match="not an ONNX file, or it is truncated"):
        read_onnx(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="opset"):
        read_onnx(path)
    for opset in (6, 27):
        proto = onnx.ModelProto.FromString(whole)
        proto.opset_import[0].version = opset
        with pytest.raises(InputError, match=rf"opset \[{opset}\]; opsets 7 to 26"):
            read_onnx(save(proto, tmp_path))
    proto = onnx.ModelProto.FromString(whole)
    proto.graph.node[0].input[0] = "nowhere"
    with pytest.raises(InputError, match="not a valid ONNX model"):
        read_onnx(save(proto, tmp_path))


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = save(model([node("Relu", "x")], [1, 4]), tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"needs the package 'onnxruntime': pip install 'stalwart\[onnx\]'"):
        OnnxSession(path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"needs the package 'onnx': pip install 'stalwart\[onnx\]'"):
        read_onnx(path)


def test_a_network_that_computes_something_else_is_noticed(tmp_path):
    net, _ = small_net(tmp_path)
    path = tmp_path / "net.onnx"
    assert check_against_onnxruntime(path, net) < 1e-6
    with torch.no_grad():
        net.steps["Conv_0"].weight[0, 0, 0, 0] += 0.01
    with pytest.raises(InputError, match="computes something else here than in onnxruntime"):
        check_against_onnxruntime(path, net)
    assert check_against_onnxruntime(path, net, tolerance=1.0) > 1e-4


def test_the_comparison_draws_from_the_given_box(tmp_path):
    path = save(model([node("Log", "x")], [1, 4]), tmp_path)
    net = read_onnx(path)
    with pytest.raises(InputError, match="pass the box"):
        check_against_onnxruntime(path, net)
    seen = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    lower, upper = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.5, 2.0, 5.0, 5.0])
    assert check_against_onnxruntime(path, net, samples=50, seed=3, lower=lower, upper=upper) < 1e-6
    [x] = seen
    assert x.shape == (50, 4)
    assert bool(((x >= lower) & (x <= upper)).all())
    assert float((x.amax(0) - x.amin(0))[2]) > 1.5
    with pytest.raises(UsageError, match="samples"):
        check_against_onnxruntime(path, net, samples=0)


def test_sessions_refuse_rows_of_another_size(tmp_path):
    session = OnnxSession(save(model([node("Relu", "x")], [1, 4]), tmp_path))
    assert session.run(torch.ones(2, 2, 2)).shape == (2, 4)
    with pytest.raises(InputError, match="cannot run"):
        session.run(torch.ones(2, 5))
    with pytest.raises(UsageError, match="threads"):
        OnnxSession(tmp_path / "net.onnx", threads=0)


def test_it_is_a_module_like_any_other(tmp_path):
    net, _ = small_net(tmp_path)
    again = nn.Sequential(net, nn.Softmax(-1)).eval()
    assert again(torch.zeros(2, 2, 4, 4)).sum(-1).tolist() == pytest.approx([1, 1])
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    other = read_onnx(tmp_path / "net.onnx")
    other.load_state_dict(state)
