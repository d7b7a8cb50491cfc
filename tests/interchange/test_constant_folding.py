"""Arithmetic on constants, which exporters leave in the file, is carried out while it is read."""

import numpy as np
import pytest
from onnx_graphs import agree, helper, model, node, numbers


def ints(*values):
    return np.array(values, np.int64)


def floats(*values):
    return np.array(values, np.float32)


def test_shape_feeds_reshape(tmp_path):
    chain = [
        node("Shape", "x", outputs=("s",)),
        node("Gather", "s", "zero", outputs=("n",)),
        node("Unsqueeze", "n", "axes", outputs=("n1",)),
        node("Concat", "n1", "rest", outputs=("t",), axis=0),
        node("Reshape", "x", "t"),
    ]
    constants = {"zero": np.array(0), "axes": ints(0), "rest": ints(-1)}
    assert len(agree(model(chain, [1, 2, 5, 6], constants), tmp_path).steps) == 1
    # A symbolic batch axis is one sample.
    net = agree(model(chain, ["batch", 2, 5, 6], constants), tmp_path)
    assert net.input_shape == (2, 5, 6)


def test_constant_nodes_are_folded(tmp_path):
    value = helper.make_node("Constant", [], ["c"], value_float=2.0)
    chain = [
        value,
        node("Sqrt", "c", outputs=("r",)),
        node("Reciprocal", "r", outputs=("i",)),
        node("Exp", "i", outputs=("e",)),
        node("Mul", "x", "e"),
    ]
    assert len(agree(model(chain, [1, 5]), tmp_path).steps) == 1


FOLDED = {
    "ConstantOfShape Expand": [
        node("ConstantOfShape", "three", outputs=("z",)),
        node("Expand", "one", "three_one", outputs=("o",)),
        node("Add", "z", "o", outputs=("c",)),
    ],
    "Range Cast Where Equal": [
        node("Range", "zero", "six", "step", outputs=("r",)),
        node("Cast", "r", outputs=("f",), to=1),
        node("Equal", "r", "four", outputs=("e",)),
        node("Where", "e", "one", "f", outputs=("g",)),
        node("Unsqueeze", "g", "axis", outputs=("u",)),
        node("Transpose", "u", outputs=("c",)),
    ],
    "Slice Squeeze Div": [
        node("Slice", "table", "axis", "two", outputs=("s",)),
        node("Squeeze", "s", outputs=("q",)),
        node("Div", "q", "one", outputs=("c",)),
    ],
    "whole numbers": [
        node("Neg", "four", outputs=("n",)),
        node("Div", "n", "three", outputs=("d",)),
        node("Mul", "d", "d", outputs=("m",)),
        node("Sub", "m", "three", outputs=("s",)),
        node("Pow", "s", "two", outputs=("p",)),
        node("ReduceProd", "p", outputs=("rp",)),
        node("Max", "rp", "three", outputs=("ma",)),
        node("Min", "ma", "four", outputs=("mi",)),
        node("Cast", "mi", outputs=("fl",), to=1),
        node("Log", "fl", outputs=("c",)),
    ],
    "weights": [
        node("MatMul", "table", "table", outputs=("m",)),
        node("Floor", "m", outputs=("f",)),
        node("Flatten", "f", outputs=("g",), axis=0),
        node("Reshape", "g", "three_rest", outputs=("h",)),
        node("Identity", "h", outputs=("i",)),
        node("Shape", "i", outputs=("k",)),
        node("Reshape", "i", "k", outputs=("c0",)),
        node("Gather", "c0", "zero", outputs=("c",), axis=1),
    ],
}


@pytest.mark.parametrize("case", FOLDED)
def test_arithmetic_on_constants_is_done_while_reading(case, tmp_path):
    constants = {
        "zero": np.array(0),
        "one": floats(1),
        "two": ints(2),
        "three": ints(3),
        "four": ints(4),
        "six": np.array(6),
        "step": np.array(2),
        "axis": ints(1),
        "three_one": ints(3, 1),
        "three_rest": ints(3, -1),
        "table": 3 * numbers(3, 3),
    }
    used = {name for one in FOLDED[case] for name in one.input}
    nodes = [*FOLDED[case], node("Mul", "x", "c")]
    proto = model(nodes, [1, 3, 3], {name: array for name, array in constants.items() if name in used})
    agree(proto, tmp_path)
