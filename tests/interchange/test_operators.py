"""Every operator of the table, alone in a graph, against onnxruntime; three rows at once here, one by one there."""

import numpy as np
import pytest
import torch
from onnx_graphs import agree, helper, model, node, numbers, save
from torch.nn import functional as F

from stalwart.core.errors import InputError
from stalwart.interchange import read_onnx
from stalwart.interchange.operators.table import OPERATORS


def ints(*values):
    return np.array(values, np.int64)


def floats(*values):
    return np.array(values, np.float32)


IMAGE = [1, 2, 5, 6]

# name: (node, input shape, constants, opset); the name's first word is the operator.
CASES = {
    "Gemm transB": (node("Gemm", "x", "w", "b", transB=1), [1, 5], {"w": numbers(4, 5), "b": numbers(4)}, 13),
    "Gemm plain": (node("Gemm", "x", "w", "b"), [1, 5], {"w": numbers(5, 4), "b": numbers(1, 4)}, 9),
    "Gemm no bias": (node("Gemm", "x", "w"), [1, 5], {"w": numbers(5, 4)}, 11),
    "Gemm scaled": (
        node("Gemm", "x", "w", "b", alpha=0.5, beta=2.0),
        [1, 5],
        {"w": numbers(5, 4), "b": numbers(1)},
        13,
    ),
    "Gemm rows": (node("Gemm", "x", "w", "b"), [3, 5], {"w": numbers(5, 4), "b": numbers(4)}, 13),
    "MatMul right": (node("MatMul", "x", "w"), [1, 5], {"w": numbers(5, 4)}, 13),
    "MatMul vector": (node("MatMul", "x", "w"), [5], {"w": numbers(5, 4)}, 14),
    "MatMul to one number": (node("MatMul", "x", "w"), [1, 3, 5], {"w": numbers(5)}, 13),
    "MatMul left vector": (node("MatMul", "w", "x"), [5], {"w": numbers(4, 5)}, 13),
    "MatMul left column": (node("MatMul", "w", "x"), [5, 1], {"w": numbers(4, 5)}, 13),
    "MatMul left matrix": (node("MatMul", "w", "x"), [5, 3], {"w": numbers(4, 5)}, 13),
    "MatMul left row of matrices": (node("MatMul", "w", "x"), [1, 5, 3], {"w": numbers(4, 5)}, 13),
    "MatMul sequence": (node("MatMul", "x", "w"), [1, 3, 5], {"w": numbers(5, 4)}, 13),
    "MatMul stack": (node("MatMul", "x", "w"), [1, 3, 5], {"w": numbers(2, 5, 4)}, 13),
    "MatMul left stack": (node("MatMul", "w", "x"), [1, 3, 5], {"w": numbers(2, 4, 3)}, 13),
    "MatMul both": (node("MatMul", "x", "x"), [1, 2, 4, 4], {}, 13),
    "MatMul both flat": (node("MatMul", "x", "x"), [4, 4], {}, 13),
    "Conv": (node("Conv", "x", "w", "b"), IMAGE, {"w": numbers(3, 2, 3, 3), "b": numbers(3)}, 11),
    "Conv padded": (
        node("Conv", "x", "w", pads=[1, 1, 1, 1], strides=[2, 2], kernel_shape=[3, 3]),
        IMAGE,
        {"w": numbers(3, 2, 3, 3)},
        11,
    ),
    "Conv uneven": (
        node("Conv", "x", "w", pads=[0, 1, 2, 3], dilations=[2, 1], strides=[1, 2]),
        IMAGE,
        {"w": numbers(3, 2, 3, 2)},
        11,
    ),
    "Conv groups": (node("Conv", "x", "w", group=2), IMAGE, {"w": numbers(4, 1, 3, 3)}, 22),
    "Conv upper": (
        node("Conv", "x", "w", auto_pad="SAME_UPPER", strides=[2, 2]),
        IMAGE,
        {"w": numbers(3, 2, 2, 3)},
        11,
    ),
    "Conv lower": (
        node("Conv", "x", "w", auto_pad="SAME_LOWER", strides=[2, 2]),
        IMAGE,
        {"w": numbers(3, 2, 2, 3)},
        11,
    ),
    "Conv valid": (node("Conv", "x", "w", auto_pad="VALID"), IMAGE, {"w": numbers(3, 2, 3, 2)}, 11),
    "Conv 1d": (node("Conv", "x", "w", "b", pads=[1, 0]), [1, 2, 7], {"w": numbers(3, 2, 3), "b": numbers(3)}, 11),
    "Conv 3d": (node("Conv", "x", "w", pads=[1] * 6), [1, 2, 3, 4, 5], {"w": numbers(3, 2, 3, 3, 3)}, 11),
    "ConvTranspose": (
        node("ConvTranspose", "x", "w", "b", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
        IMAGE,
        {"w": numbers(2, 3, 3, 3), "b": numbers(3)},
        11,
    ),
    "ConvTranspose uneven": (
        node("ConvTranspose", "x", "w", strides=[2, 1], pads=[0, 1, 1, 0], dilations=[1, 2]),
        IMAGE,
        {"w": numbers(2, 3, 3, 2)},
        11,
    ),
    "ConvTranspose groups": (
        node("ConvTranspose", "x", "w", group=2, strides=[2, 2]),
        IMAGE,
        {"w": numbers(2, 2, 2, 2)},
        22,
    ),
    "ConvTranspose upper": (
        node("ConvTranspose", "x", "w", auto_pad="SAME_UPPER", strides=[2, 2]),
        IMAGE,
        {"w": numbers(2, 3, 3, 3)},
        11,
    ),
    "ConvTranspose lower": (
        node("ConvTranspose", "x", "w", auto_pad="SAME_LOWER", strides=[2, 2]),
        IMAGE,
        {"w": numbers(2, 3, 3, 3)},
        11,
    ),
    "ConvTranspose shaped": (
        node("ConvTranspose", "x", "w", output_shape=[10, 12], strides=[2, 2]),
        IMAGE,
        {"w": numbers(2, 3, 3, 3)},
        11,
    ),
    "ConvTranspose 1d": (node("ConvTranspose", "x", "w"), [1, 2, 7], {"w": numbers(2, 3, 3)}, 11),
    "BatchNormalization": (
        node("BatchNormalization", "x", "s", "b", "m", "v", epsilon=1e-3),
        IMAGE,
        {"s": numbers(2), "b": numbers(2, seed=1), "m": numbers(2, seed=2), "v": numbers(2, low=0.5)},
        9,
    ),
    "BatchNormalization flat": (
        node("BatchNormalization", "x", "s", "b", "m", "v", momentum=0.8),
        [1, 4],
        {"s": numbers(4), "b": numbers(4, seed=1), "m": numbers(4, seed=2), "v": numbers(4, low=0.5)},
        15,
    ),
    "Add constant": (node("Add", "x", "c"), IMAGE, {"c": numbers(2, 1, 1)}, 13),
    "Add same rank": (node("Add", "c", "x"), IMAGE, {"c": numbers(1, 1, 5, 1)}, 13),
    "Add scalar": (node("Add", "x", "c"), IMAGE, {"c": np.float32(2.5)}, 7),
    "Add wider": (node("Add", "x", "c"), [1, 1], {"c": numbers(1, 5)}, 13),
    "Add more axes": (node("Add", "x", "c"), [1, 5], {"c": numbers(2, 3, 5)}, 13),
    "Add more rows": (node("Add", "x", "c"), [1, 5], {"c": numbers(3, 5)}, 13),
    "Add vector": (node("Add", "x", "c"), [5], {"c": numbers(1, 5)}, 13),
    "Add rows": (node("Add", "x", "x"), [2, 5], {}, 13),
    "Sub": (node("Sub", "x", "c"), IMAGE, {"c": numbers(1, 2, 5, 6)}, 8),
    "Sub left": (node("Sub", "c", "x"), IMAGE, {"c": numbers(6)}, 13),
    "Mul": (node("Mul", "x", "c"), IMAGE, {"c": numbers(2, 5, 6)}, 13),
    "Mul both": (node("Mul", "x", "x"), IMAGE, {}, 13),
    "Div": (node("Div", "x", "c"), [1, 5], {"c": numbers(5, low=0.5)}, 13),
    "Div left": (node("Div", "c", "x"), [1, 5], {"c": numbers(1)}, 14),
    "Neg": (node("Neg", "x"), [1, 5], {}, 13),
    "Relu": (node("Relu", "x"), [1, 5], {}, 7),
    "LeakyRelu": (node("LeakyRelu", "x", alpha=0.2), [1, 5], {}, 13),
    "LeakyRelu default": (node("LeakyRelu", "x"), [1, 5], {}, 16),
    "PRelu channels": (node("PRelu", "x", "s"), IMAGE, {"s": numbers(2, 1, 1)}, 13),
    "PRelu one": (node("PRelu", "x", "s"), [1, 5], {"s": numbers(1)}, 9),
    "PRelu columns": (node("PRelu", "x", "s"), [1, 5], {"s": numbers(5)}, 16),
    "PRelu everywhere": (node("PRelu", "x", "s"), IMAGE, {"s": numbers(1, 2, 5, 6)}, 13),
    "PRelu vector": (node("PRelu", "x", "s"), [5], {"s": numbers(5)}, 13),
    "Clip": (node("Clip", "x", "a", "b"), [1, 50], {"a": np.float32(-0.5), "b": np.float32(0.7)}, 13),
    "Clip below": (node("Clip", "x", "a"), [1, 50], {"a": np.float32(-0.5)}, 11),
    "Clip above": (node("Clip", "x", "", "b"), [1, 50], {"b": np.float32(0.5)}, 12),
    "Clip attributes": (node("Clip", "x", min=-0.25, max=1.0), [1, 50], {}, 7),
    "Clip nothing": (node("Clip", "x"), [1, 5], {}, 13),
    "Sigmoid": (node("Sigmoid", "x"), [1, 5], {}, 13),
    "Tanh": (node("Tanh", "x"), [1, 5], {}, 13),
    "Softplus": (node("Softplus", "x"), [1, 5], {}, 13),
    "Exp": (node("Exp", "x"), [1, 5], {}, 13),
    "Abs": (node("Abs", "x"), [1, 5], {}, 13),
    "Sin": (node("Sin", "x"), [1, 5], {}, 7),
    "Cos": (node("Cos", "x"), [1, 5], {}, 22),
    "Sign": (node("Sign", "x"), [1, 50], {}, 13),
    "Erf": (node("Erf", "x"), [1, 5], {}, 13),
    "Gelu": (node("Gelu", "x"), [1, 5], {}, 20),
    "Gelu tanh": (node("Gelu", "x", approximate="tanh"), [1, 5], {}, 20),
    "Elu": (node("Elu", "x", alpha=0.5), [1, 5], {}, 13),
    "HardSigmoid": (node("HardSigmoid", "x"), [1, 50], {}, 13),
    "HardSigmoid scaled": (node("HardSigmoid", "x", alpha=0.5, beta=0.1), [1, 50], {}, 22),
    "Pow": (node("Pow", "x", "c"), [1, 5], {"c": np.float32(2)}, 13),
    "Pow whole": (node("Pow", "x", "c"), [1, 5], {"c": ints(3)}, 15),
    "Max": (node("Max", "x", "c"), [1, 5], {"c": numbers(5)}, 13),
    "Max three": (node("Max", "c", "x", "d"), [1, 5], {"c": numbers(5), "d": numbers(1, seed=3)}, 8),
    "Min": (node("Min", "x", "c"), [1, 5], {"c": numbers(1, 5)}, 13),
    "MaxPool": (node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2]), IMAGE, {}, 8),
    "MaxPool padded": (node("MaxPool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]), IMAGE, {}, 12),
    "MaxPool uneven": (node("MaxPool", "x", kernel_shape=[2, 3], pads=[0, 1, 1, 2]), IMAGE, {}, 12),
    "MaxPool dilated": (node("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 3]), IMAGE, {}, 12),
    "MaxPool ceil": (node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), IMAGE, {}, 12),
    "MaxPool ceil padded": (
        node("MaxPool", "x", kernel_shape=[3, 3], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1),
        IMAGE,
        {},
        12,
    ),
    "MaxPool same": (
        node("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
        IMAGE,
        {},
        12,
    ),
    "MaxPool 1d": (node("MaxPool", "x", kernel_shape=[3]), [1, 2, 7], {}, 12),
    "MaxPool 3d": (node("MaxPool", "x", kernel_shape=[2, 2, 2]), [1, 2, 3, 4, 5], {}, 12),
    "AveragePool": (node("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2]), IMAGE, {}, 7),
    "AveragePool padded": (node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), IMAGE, {}, 11),
    "AveragePool counted": (
        node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        IMAGE,
        {},
        11,
    ),
    "AveragePool uneven": (node("AveragePool", "x", kernel_shape=[3, 2], pads=[0, 1, 2, 0]), IMAGE, {}, 11),
    "AveragePool uneven counted": (
        node("AveragePool", "x", kernel_shape=[3, 2], pads=[0, 1, 2, 0], count_include_pad=1),
        IMAGE,
        {},
        11,
    ),
    "AveragePool ceil": (node("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), IMAGE, {}, 19),
    "AveragePool 1d": (node("AveragePool", "x", kernel_shape=[3]), [1, 2, 7], {}, 22),
    "GlobalAveragePool": (node("GlobalAveragePool", "x"), IMAGE, {}, 13),
    "ReduceMean": (node("ReduceMean", "x", axes=[2, 3], keepdims=1), IMAGE, {}, 13),
    "ReduceMean input": (node("ReduceMean", "x", "a", keepdims=0), IMAGE, {"a": ints(-1, 1)}, 18),
    "ReduceMean to numbers": (node("ReduceMean", "x", axes=[1], keepdims=0), [1, 5], {}, 13),
    "ReduceMean vector": (node("ReduceMean", "x", axes=[0]), [5], {}, 13),
    "ReduceSum": (node("ReduceSum", "x", axes=[-1], keepdims=0), IMAGE, {}, 11),
    "ReduceSum input": (node("ReduceSum", "x", "a"), IMAGE, {"a": ints(1)}, 13),
    "ReduceSum nothing": (node("ReduceSum", "x", noop_with_empty_axes=1), [1, 5], {}, 13),
    "Softmax": (node("Softmax", "x"), [1, 3, 5], {}, 13),
    "Softmax channels": (node("Softmax", "x", axis=1), IMAGE, {}, 13),
    "Softmax old": (node("Softmax", "x"), [1, 3, 5], {}, 11),
    "Flatten": (node("Flatten", "x"), IMAGE, {}, 13),
    "Flatten others": (node("Flatten", "x", axis=2), IMAGE, {}, 13),
    "Flatten last": (node("Flatten", "x", axis=-1), [4, 5], {}, 11),
    "Flatten all": (node("Flatten", "x", axis=0), [5], {}, 13),
    "Reshape": (node("Reshape", "x", "s"), IMAGE, {"s": ints(1, -1)}, 13),
    "Reshape zero": (node("Reshape", "x", "s"), IMAGE, {"s": ints(0, 2, 0, 3, -1)}, 14),
    "Reshape to a vector": (node("Reshape", "x", "s"), IMAGE, {"s": ints(-1)}, 13),
    "Reshape to rows": (node("Reshape", "x", "s"), IMAGE, {"s": ints(-1, 6)}, 5 + 2),
    "Squeeze": (node("Squeeze", "x", "a"), [1, 2, 1, 3], {"a": ints(2)}, 13),
    "Squeeze batch": (node("Squeeze", "x", axes=[0, -2]), [1, 2, 1, 3], {}, 11),
    "Squeeze all": (node("Squeeze", "x"), [1, 2, 1, 3], {}, 13),
    "Unsqueeze": (node("Unsqueeze", "x", "a"), [1, 5], {"a": ints(1, -1)}, 13),
    "Unsqueeze batch": (node("Unsqueeze", "x", axes=[0]), [5], {}, 11),
    "Transpose": (node("Transpose", "x", perm=[0, 2, 3, 1]), IMAGE, {}, 13),
    "Transpose vector": (node("Transpose", "x"), [2, 5], {}, 13),
    "Concat": (node("Concat", "x", "x", axis=1), IMAGE, {}, 13),
    "Concat constant": (node("Concat", "c", "x", axis=-1), IMAGE, {"c": numbers(1, 2, 5, 2)}, 13),
    "Concat vector": (node("Concat", "x", "c", axis=0), [5], {"c": numbers(3)}, 13),
    "Slice": (node("Slice", "x", "s", "e", "a"), IMAGE, {"s": ints(1, -4), "e": ints(9, -1), "a": ints(2, 3)}, 13),
    "Slice steps": (
        node("Slice", "x", "s", "e", "a", "t"),
        IMAGE,
        {"s": ints(-1, 1), "e": ints(-9, 6), "a": ints(2, -1), "t": ints(-2, 2)},
        10,
    ),
    "Slice attributes": (node("Slice", "x", starts=[0, 1], ends=[1, 2], axes=[0, 1]), IMAGE, {}, 9),
    "Slice vector": (node("Slice", "x", "s", "e"), [2, 5], {"s": ints(1), "e": ints(2)}, 13),
    "Gather one": (node("Gather", "x", "i", axis=2), IMAGE, {"i": np.array(-1)}, 13),
    "Gather some": (node("Gather", "x", "i", axis=1), [1, 5], {"i": ints(4, 0, -2, 0)}, 13),
    "Gather grid": (node("Gather", "x", "i", axis=-1), IMAGE, {"i": ints(0, 3, 5, 1).reshape(2, 2)}, 11),
    "Gather vector": (node("Gather", "x", "i"), [5], {"i": ints(3, 1)}, 13),
    "Pad": (node("Pad", "x", "p", "v"), IMAGE, {"p": ints(0, 0, 1, 2, 0, 1, 0, 3), "v": np.float32(0.5)}, 13),
    "Pad cut": (node("Pad", "x", "p"), IMAGE, {"p": ints(0, 0, -1, 0, 0, 0, 0, 2)}, 11),
    "Pad attributes": (node("Pad", "x", pads=[0, 1, 0, 2], value=-1.0), [1, 5], {}, 7),
    "Pad axes": (node("Pad", "x", "p", "", "a"), IMAGE, {"p": ints(1, 2), "a": ints(-1)}, 18),
    "Pad vector": (node("Pad", "x", "p"), [5], {"p": ints(1, 2)}, 13),
    "Expand": (node("Expand", "x", "s"), [1, 2, 1], {"s": ints(2, 3)}, 13),
    "Expand rows": (node("Expand", "x", "s"), [1, 5], {"s": ints(4, 5)}, 13),
    "Upsample": (node("Upsample", "x", "s"), IMAGE, {"s": floats(1, 1, 2, 3)}, 9),
    "Upsample attribute": (node("Upsample", "x", scales=[1.0, 1.0, 2.0, 2.0]), IMAGE, {}, 7),
    "Resize": (
        node("Resize", "x", "", "s", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        IMAGE,
        {"s": floats(1, 1, 3, 2)},
        13,
    ),
    "Resize half": (node("Resize", "x", "", "s"), IMAGE, {"s": floats(1, 1, 4, 3)}, 19),
    "Resize sizes": (
        node("Resize", "x", "", "", "z", coordinate_transformation_mode="pytorch_half_pixel"),
        IMAGE,
        {"z": ints(1, 2, 10, 18)},
        13,
    ),
    "Resize old": (node("Resize", "x", "s"), IMAGE, {"s": floats(1, 1, 2, 2)}, 10),
    "Dropout": (node("Dropout", "x", ratio=0.4), [1, 5], {}, 7),
    "Dropout input": (node("Dropout", "x", "r", "t"), [1, 5], {"r": np.float32(0.3), "t": np.array(False)}, 13),
    "Identity": (node("Identity", "x"), [1, 5], {}, 13),
    "Cast": (node("Cast", "x", to=1), [1, 5], {}, 13),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operator_computes_what_onnxruntime_computes(case, tmp_path):
    one, shape, constants, opset = CASES[case]
    agree(model([one], shape, constants, opset), tmp_path)


RESHAPING = [case for case in CASES if case.split()[0] in ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Expand")]


@pytest.mark.parametrize("case", RESHAPING)
def test_a_new_shape_means_the_same_to_the_next_operator(case, tmp_path):
    # The numbers stay in place; that their rows are the right ones shows in what follows.
    one, shape, constants, opset = CASES[case]
    one = helper.make_node(
        one.op_type, one.input, ["rows"], **{a.name: helper.get_attribute_value(a) for a in one.attribute}
    )
    agree(model([one, node("Concat", "rows", "rows", axis=-1)], shape, constants, max(opset, 11)), tmp_path)


POSITIVE = {"Log": [], "Sqrt": [], "Reciprocal": [], "Pow": ["x"]}


@pytest.mark.parametrize("op", POSITIVE)
def test_an_operator_on_positive_numbers(op, tmp_path):
    agree(model([node(op, "x", *POSITIVE[op])], [1, 5]), tmp_path, low=0.5, high=3.0)


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
def test_a_dilated_pool_that_onnxruntime_pads_in_its_own_way_is_refused(auto, tmp_path):
    pool = node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], dilations=[2, 1], auto_pad=auto)
    with pytest.raises(InputError, match="MaxPool_of_y.*ambiguous. Give pads"):
        read_onnx(save(model([pool], IMAGE, opset=12), tmp_path))


def test_split_gives_all_its_parts_to_others(tmp_path):
    parts = [node("Split", "x", "s", outputs=("a", "b"), axis=1), node("Concat", "b", "a", axis=1)]
    agree(model(parts, [1, 5], {"s": ints(2, 3)}), tmp_path)
    parts = [node("Split", "x", outputs=("a", "b", "c"), axis=-1, num_outputs=3), node("Concat", "c", "a", "b", axis=1)]
    agree(model(parts, [1, 8], opset=18), tmp_path)
    parts = [node("Split", "x", outputs=("a", "b"), axis=0, split=[1, 3]), node("Concat", "b", "a", axis=0)]
    agree(model(parts, [4], opset=11), tmp_path)
    parts = [node("Split", "x", outputs=("a", "b"), axis=2), node("Sub", "b", "a")]
    agree(model(parts, [1, 3, 4]), tmp_path)


def test_the_cases_cover_the_table():
    covered = {case.split()[0] for case in CASES} | set(POSITIVE) | {"Split", "Shape"}
    assert covered == set(OPERATORS)


def test_softplus_is_exact_in_float64(tmp_path):
    net = agree(model([node("Softplus", "x")], [1, 4]), tmp_path).double()
    x = torch.tensor([[21.0, 25.0, 39.0, 45.0]], dtype=torch.float64)
    assert torch.equal(net(x), x + torch.log1p(torch.exp(-x)))


def test_a_linear_layer_is_one_linear_step(tmp_path):
    dense = [
        node("MatMul", "x", "w", outputs=("h",)),
        node("Add", "b", "h", outputs=("g",)),
        node("Relu", "g", outputs=("r",)),
        node("MatMul", "r", "v", outputs=("q",)),
        node("Add", "q", "one"),
    ]
    constants = {"w": numbers(5, 4), "b": numbers(4), "v": numbers(4, 3, seed=1), "one": floats(1)}
    net = agree(model(dense, [1, 5], constants), tmp_path)
    functions = [step.function for step in net.steps.values()]
    assert functions == [F.linear, torch.relu, F.linear]
    first = next(iter(net.steps.values()))
    assert torch.equal(first.weight, torch.from_numpy(constants["w"].T))
    assert torch.equal(first.bias, torch.from_numpy(constants["b"]))


def test_a_product_used_twice_keeps_its_own_step(tmp_path):
    shared = [
        node("MatMul", "x", "w", outputs=("h",)),
        node("Add", "h", "b", outputs=("g",)),
        node("Mul", "g", "h"),
    ]
    net = agree(model(shared, [1, 5], {"w": numbers(5, 4), "b": numbers(4)}), tmp_path)
    assert [step.function for step in net.steps.values()] == [F.linear, torch.add, torch.mul]


def test_a_vector_behind_a_layer_with_a_bias_is_added(tmp_path):
    layers = [node("Gemm", "x", "w", "b", outputs=("h",)), node("Add", "h", "c")]
    net = agree(model(layers, [1, 5], {"w": numbers(5, 4), "b": numbers(4), "c": numbers(4, seed=1)}), tmp_path)
    assert [step.function for step in net.steps.values()] == [F.linear, torch.add]


def test_one_shared_weight_becomes_two_parameters_that_train_apart(tmp_path):
    twice = [node("Gemm", "x", "w", outputs=("h",), transB=1), node("Gemm", "h", "w", transB=1)]
    one, two = agree(model(twice, [1, 3], {"w": numbers(3, 3)}), tmp_path).parameters()
    with torch.no_grad():
        one.zero_()
    assert bool(two.any())
