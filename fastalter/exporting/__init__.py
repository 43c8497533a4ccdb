"""ONNX files of a fusion network's dense parts, as CUDA-BEVFusion deploys them, each checked against torch."""

from fastalter.exporting.job import Export, ExportOptions, export_checkpoint
from fastalter.exporting.onnx_file import check_onnx, write_onnx
from fastalter.exporting.parts import PARTS, OnnxPart, onnx_parts

__all__ = [
    "PARTS",
    "Export",
    "ExportOptions",
    "OnnxPart",
    "check_onnx",
    "export_checkpoint",
    "onnx_parts",
    "write_onnx",
]
