"""VNN-COMP's files: lists of instances, results, counterexamples."""

import gzip

import pytest
import torch

from stalwart.core.errors import FileError, InputError, UsageError
from stalwart.interchange import Instance, read_counterexample, read_instances, write_result


def test_instances_are_found_beside_their_list(tmp_path):
    path = tmp_path / "instances.csv"
    path.write_text("onnx/a.onnx,vnnlib/p.vnnlib,116\n\n./b.onnx , q.vnnlib , 5.5\r\n")
    assert read_instances(path) == (
        Instance(tmp_path / "onnx/a.onnx", tmp_path / "vnnlib/p.vnnlib", 116.0),
        Instance(tmp_path / "b.onnx", tmp_path / "q.vnnlib", 5.5),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.onnx,p.vnnlib", "line 2: found 2 fields"),
        ("a.onnx,p.vnnlib,5,6", "line 2: found 4 fields"),
        ("a.onnx,,5", "expected onnx,vnnlib,timeout"),
        ("a.onnx,p.vnnlib,soon", "line 2: the timeout 'soon'"),
        ("a.onnx,p.vnnlib,0", "timeout '0'"),
        ("a.onnx,p.vnnlib,nan", "timeout 'nan'"),
        ("a.onnx,p.vnnlib,inf", "timeout 'inf'"),
    ],
)
def test_other_lines_are_refused(line, message, tmp_path):
    path = tmp_path / "instances.csv"
    path.write_text(f"a.onnx,p.vnnlib,5\n{line}\n")
    with pytest.raises(InputError, match=message):
        read_instances(path)


@pytest.mark.parametrize(("status", "word"), [("verified", "unsat"), ("unknown", "unknown"), ("timeout", "timeout")])
def test_a_result_without_counterexample_is_one_word(status, word, tmp_path):
    path = tmp_path / "result.txt"
    write_result(path, status)
    assert path.read_text() == f"{word}\n"


def test_a_counterexample_reads_back_to_the_bit(tmp_path):
    path = tmp_path / "result.txt"
    x = torch.tensor([[0.1, -2.5e-8], [1.0, 3e38]])
    y = torch.tensor([1 / 3, -0.0])
    write_result(path, "falsified", x, y)
    lines = path.read_text().splitlines()
    assert lines[:2] == ["sat", "((X_0 0.10000000149011612)"]
    assert lines[-1] == "(Y_1 -0.0))"
    found_x, found_y = read_counterexample(path)
    assert torch.equal(found_x.float(), x.flatten())
    assert torch.equal(found_y.float(), y)
    packed = tmp_path / "c.counterexample.gz"
    packed.write_bytes(gzip.compress("\n".join(lines[1:]).encode()))
    assert torch.equal(read_counterexample(packed)[0], found_x)


def test_impossible_results_are_refused_before_anything_is_written(tmp_path):
    path, one = tmp_path / "result.txt", torch.ones(1)
    with pytest.raises(UsageError, match="unknown verdict 'falsify'. Did you mean 'falsified'"):
        write_result(path, "falsify")
    with pytest.raises(UsageError, match="belongs to the verdict 'falsified'"):
        write_result(path, "verified", one, one)
    with pytest.raises(UsageError, match="needs a finite input"):
        write_result(path, "falsified", one)
    with pytest.raises(UsageError, match="needs a finite input"):
        write_result(path, "falsified", one, one / 0)
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found 0 expressions"),
        ("unsat", "found 1 expressions"),
        ("((X_0 1)) ((Y_0 1))", "found 2 expressions"),
        ("((X_0 1)\n (X_2 1))", r"line 2, column 2: found '\(X_2 1\)', expected \(X_1 NUMBER\) or \(Y_0 NUMBER\)"),
        ("((X_0))", r"line 1, column 2"),
        ("((X_0 one))", r"line 1, column 2"),
        ("((X_0 1 2))", r"line 1, column 2"),
        ("((X_0 nan))", r"line 1, column 2"),
        ("(X_0 1)", r"line 1, column 2: found 'X_0'"),
        ("((X_0 1)", "never closed"),
    ],
)
def test_other_counterexamples_are_refused(text, message, tmp_path):
    path = tmp_path / "c"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_counterexample(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileError, match="instance list .*none"):
        read_instances(tmp_path / "none")
    with pytest.raises(FileError, match="counterexample .*none"):
        read_counterexample(tmp_path / "none")
