"""Four benchmarks of VNN-COMP: every network, every property (of CIFAR-10 a sample), every checked counterexample."""

import csv

import pytest
import torch

from stalwart.interchange import OnnxSession, check_against_onnxruntime, read_counterexample, read_onnx, read_vnnlib

BENCHMARKS = {
    "2021_test": (5, 4),
    "2021_acasxu": (45, 10),
    "2022_mnist_fc": (3, 30),
    "2021_cifar10_resnet": (2, 72),
}
# A CIFAR-10 property has 6144 assertions, and all are made by one script: the first and the last say enough.
SAMPLED = {"2021_cifar10_resnet": 2, "2022_mnist_fc": 5}


def folder(shared, name):
    path = shared / "data" / "vnncomp" / name
    if not path.is_dir():
        pytest.skip(f"no {path}")
    return path


@pytest.fixture(scope="module")
def properties(shared):
    """Return a reader of properties that reads each file once."""
    known = {}

    def read(path):
        if path not in known:
            known[path] = read_vnnlib(path)
        return known[path]

    return read


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_network_computes_what_onnxruntime_computes(name, shared):
    paths = sorted(folder(shared, name).glob("onnx/*.onnx"))
    assert len(paths) == BENCHMARKS[name][0]
    for path in paths:
        assert check_against_onnxruntime(path, read_onnx(path), samples=4, seed=1) < 2e-6, path.name


SIZES = {"2021_acasxu": (5, 5), "2022_mnist_fc": (784, 10), "2021_cifar10_resnet": (3072, 10)}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_properties_are_read(name, shared, properties):
    paths = sorted(folder(shared, name).glob("vnnlib/*.vnnlib.gz"))
    assert len(paths) == BENCHMARKS[name][1]
    step = max(len(paths) // SAMPLED.get(name, len(paths)), 1)
    for path in paths[::step]:
        found = properties(path)
        if name in SIZES:
            assert (found.inputs, found.outputs) == SIZES[name]
        for case in found.cases:
            assert bool((case.lower <= case.upper).all())
            assert case.unsafe
        if "mnist" in name or "cifar" in name:
            # Not robust: one of nine other classes is at least as likely as the true one.
            [case] = found.cases
            true = {int((conjunction.C[0] == 1).nonzero()) for conjunction in case.unsafe}
            others = {int((conjunction.C[0] == -1).nonzero()) for conjunction in case.unsafe}
            assert len(true) == 1
            assert others == set(range(10)) - true


def test_what_acasxu_properties_say(shared, properties):
    vnnlib = folder(shared, "2021_acasxu") / "vnnlib"
    six = properties(vnnlib / "prop_6.vnnlib.gz")
    assert [tuple(case.lower.tolist())[1] for case in six.cases] == pytest.approx([0.11140846, -0.499999896], abs=1e-15)
    assert [len(case.unsafe) for case in six.cases] == [4, 4]
    seven = properties(vnnlib / "prop_7.vnnlib.gz")
    assert [conjunction.C.tolist() for conjunction in seven.cases[0].unsafe] == [
        [[-1, 0, 0, 1, 0], [0, -1, 0, 1, 0], [0, 0, -1, 1, 0]],
        [[-1, 0, 0, 0, 1], [0, -1, 0, 0, 1], [0, 0, -1, 0, 1]],
    ]


# "exact" points lie in the box as float32 numbers; near 1 those are 2**-24 apart at most.
ROUNDING = 2.0**-24


@pytest.mark.parametrize("name", ["2021_test", "2021_acasxu", "2022_mnist_fc"])
def test_every_checked_counterexample_violates_its_property(name, shared, properties):
    top = folder(shared, name)
    with (top / "ground_truth.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["strength"] == "counterexample_checked"]
    assert len(rows) == {"2021_test": 1, "2021_acasxu": 47, "2022_mnist_fc": 18}[name]
    for row in rows:
        net, vnnlib = top / row["onnx"], top / row["vnnlib"]
        point = top / "counterexamples" / f"{net.stem}_{vnnlib.name.removesuffix('.vnnlib.gz')}.counterexample.gz"
        x = read_counterexample(point)[0][None]
        y = OnnxSession(net).run(x.float())
        judge = properties(vnnlib)
        if row["counterexample_check"].endswith("exact"):
            assert judge.violated_by(x.float(), y, ROUNDING).tolist() == [True], row["vnnlib"]
        else:
            # One point met its constraints up to 1e-4 in the outputs, as the rules then allowed; no longer.
            [[unsafe]] = [case.unsafe for case in judge.cases]
            assert 0 < float((unsafe.C @ y[0].double() - unsafe.d).max()) < 1e-4
            assert judge.violated_by(x.float(), y, 1e-4).tolist() == [False]
        # The same point is no counterexample outside its box.
        assert judge.violated_by(x + 10, y, 1e-4).tolist() == [False]
        ours = read_onnx(net)
        with torch.no_grad():
            shaped = x.float().reshape(1, *ours.input_shape)
            torch.testing.assert_close(ours(shaped), y, rtol=1e-4, atol=1e-5)
