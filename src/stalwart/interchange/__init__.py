"""Other tools' formats: ONNX networks, VNN-LIB properties, VNN-COMP's files."""

from stalwart.interchange.nir_export import write_nir
from stalwart.interchange.nir_import import read_nir
from stalwart.interchange.nir_run import NirRun, run_nir
from stalwart.interchange.onnx_export import write_onnx
from stalwart.interchange.onnx_import import OnnxNet, read_onnx
from stalwart.interchange.onnx_run import OnnxSession, check_against_onnxruntime, require_same
from stalwart.interchange.property import Case, Conjunction, Property
from stalwart.interchange.vnncomp import Instance, read_counterexample, read_instances, write_result
from stalwart.interchange.vnnlib import read_vnnlib

__all__ = [
    "Case",
    "Conjunction",
    "Instance",
    "NirRun",
    "OnnxNet",
    "OnnxSession",
    "Property",
    "check_against_onnxruntime",
    "read_counterexample",
    "read_instances",
    "read_nir",
    "read_onnx",
    "read_vnnlib",
    "require_same",
    "run_nir",
    "write_nir",
    "write_onnx",
    "write_result",
]
