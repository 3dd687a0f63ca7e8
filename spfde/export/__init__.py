"""What leaves a training: a dense model, safetensors, a program, ONNX; each call compares with the model."""

from spfde.export.dense import to_dense
from spfde.export.graphs import onnx, program
from spfde.export.parity import Exported
from spfde.export.tensors import safetensors

__all__ = ["Exported", "onnx", "program", "safetensors", "to_dense"]
