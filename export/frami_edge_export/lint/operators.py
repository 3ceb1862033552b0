"""Which operators TensorRT's ONNX parser has, and which of their inputs must be constants.

Source: the support matrix ``docs/operators.md`` of the open-source parser onnx/onnx-tensorrt (8.5,
and what 10.0 added to it). TensorRT 10.3 is the oldest that a supported Jetson runs.
"""

from __future__ import annotations

from typing import Final

_NAMES = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast
Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace
DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather
GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Identity If
InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min
Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow QuantizeLinear RNN
RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round Scan ScatterElements
ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign
SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu
Unsqueeze Upsample Where Xor
"""
SUPPORTED: Final = frozenset(_NAMES.split())

INSTEAD: Final = {
    "STFT": "Compute the mel on the host, or as a convolution with windowed sines and cosines.",
    "DFT": "Compute the mel on the host, or as a convolution with windowed sines and cosines.",
    "MelWeightMatrix": "Store the mel matrix as an initialiser.",
    "HannWindow": "Store the window as an initialiser.",
    "HammingWindow": "Store the window as an initialiser.",
    "BlackmanWindow": "Store the window as an initialiser.",
    "DynamicQuantizeLinear": "Quantise statically: QuantizeLinear and DequantizeLinear.",
    "ConvInteger": "Quantise with QuantizeLinear and DequantizeLinear around a float Conv.",
    "MatMulInteger": "Quantise with QuantizeLinear and DequantizeLinear around a float MatMul.",
    "QLinearConv": "Quantise in the QDQ format, not QOperator.",
    "QLinearMatMul": "Quantise in the QDQ format, not QOperator.",
}
"""What to do about the unsupported operators that audio models meet."""

CONSTANT_INPUTS: Final = {
    "CumSum": (1,),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Slice": (3,),
    "Squeeze": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
}
"""Positions of inputs, axes mostly, that must be initialisers."""
