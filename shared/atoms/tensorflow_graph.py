"""Checks TensorFlow graphs before a process loads them.

A graph may hold operations that write files, read files or call code, and evaluating a model runs
them. Only the operations of DeePMD-kit's models are allowed. Reads protobuf's wire format itself,
because most processes have no TensorFlow; https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# fmt: off
DEEPMD = frozenset({
    "Descrpt", "DescrptNorot", "DescrptSeA", "DescrptSeAEf", "DescrptSeAEfPara",
    "DescrptSeAEfVert", "DescrptSeAMask", "DescrptSeR", "DprcPairwiseIdx", "EwaldRecp", "Gelu",
    "GeluCustom", "GeluGrad", "GeluGradCustom", "GeluGradGrad", "GeluGradGradCustom",
    "MapAparam", "PairTab", "ParallelProdForceSeA", "ProdEnvMatA", "ProdEnvMatAMix",
    "ProdEnvMatR", "ProdForce", "ProdForceGrad", "ProdForceNorot", "ProdForceSeA",
    "ProdForceSeAGrad", "ProdForceSeAMask", "ProdForceSeAMaskGrad", "ProdForceSeR",
    "ProdForceSeRGrad", "ProdVirial", "ProdVirialGrad", "ProdVirialNorot", "ProdVirialSeA",
    "ProdVirialSeAGrad", "ProdVirialSeR", "ProdVirialSeRGrad", "SoftMinForce",
    "SoftMinForceGrad", "SoftMinSwitch", "SoftMinVirial", "SoftMinVirialGrad", "TabulateFusion",
    "TabulateFusionGrad", "TabulateFusionGradGrad", "TabulateFusionSeA",
    "TabulateFusionSeAGrad", "TabulateFusionSeAGradGrad", "TabulateFusionSeAtten",
    "TabulateFusionSeAttenGrad", "TabulateFusionSeAttenGradGrad", "TabulateFusionSeR",
    "TabulateFusionSeRGrad", "TabulateFusionSeRGradGrad", "TabulateFusionSeT",
    "TabulateFusionSeTGrad", "TabulateFusionSeTGradGrad", "UnaggregatedDy2Dx",
    "UnaggregatedDy2DxS", "UnaggregatedDyDx", "UnaggregatedDyDxS",
})
"""Operations of DeePMD-kit 3.2's own, without those for one kind of hardware."""
TENSORFLOW = frozenset({
    "Abs", "Add", "AddN", "AddV2", "All", "Any", "BatchMatMul", "BatchMatMulV2", "BiasAdd",
    "BiasAddGrad", "BroadcastGradientArgs", "BroadcastTo", "Cast", "Ceil", "CheckNumerics",
    "ConcatOffset", "ConcatV2", "Const", "Cos", "Cumsum", "Div", "DivNoNan", "DynamicStitch",
    "Einsum", "Elu", "EluGrad", "Equal", "Erf", "Exp", "ExpandDims", "Fill", "Floor",
    "FloorDiv", "FloorMod", "Gather", "GatherNd", "GatherV2", "Greater", "GreaterEqual",
    "Identity", "IdentityN", "Inv", "InvGrad", "InvertPermutation", "IsNan", "Less",
    "LessEqual", "LinSpace", "Log", "Log1p", "LogicalAnd", "LogicalNot", "LogicalOr", "MatMul",
    "MatrixDiagPartV3", "MatrixDiagV3",
    "Max", "Maximum", "Mean", "Merge", "Min", "Minimum", "Mod", "Mul", "Neg", "NoOp",
    "NotEqual", "OneHot", "OnesLike", "Pack", "Pad", "PadV2", "Placeholder",
    "PlaceholderWithDefault", "Pow", "PreventGradient", "Prod", "Range", "Rank", "RealDiv",
    "Reciprocal", "ReciprocalGrad", "Relu", "Relu6", "Relu6Grad", "ReluGrad", "Reshape",
    "Reverse", "ReverseV2", "Round", "Rsqrt", "RsqrtGrad", "ScatterNd", "SegmentSum", "Select",
    "SelectV2", "Selu", "SeluGrad", "Shape", "ShapeN", "Sigmoid", "SigmoidGrad", "Sign", "Sin",
    "Size", "Slice", "Softmax", "Softplus", "SoftplusGrad", "Softsign", "SoftsignGrad", "Split",
    "SplitV", "Sqrt", "SqrtGrad", "Square", "SquaredDifference", "Squeeze", "StopGradient",
    "StridedSlice", "StridedSliceGrad", "Sub", "Sum", "Switch", "Tanh", "TanhGrad", "Tile",
    "TopKV2", "Transpose", "Unpack", "UnsortedSegmentSum", "Where", "Xdivy", "Xlogy",
    "ZerosLike",
})
"""Operations that compute their outputs from their inputs and do nothing else. Models of all
descriptors, fitting nets and precisions hold no others."""
TRAINING = frozenset({
    "ApplyAdam", "ApplyGradientDescent", "ApplyMomentum", "Assert", "Assign", "AssignAdd",
    "AssignSub", "HistogramSummary", "IsVariableInitialized", "MergeSummary", "PyFunc",
    "RandomStandardNormal", "RandomUniform", "RestoreV2", "ScalarSummary", "TruncatedNormal",
    "VariableV2",
})
"""Further operations of a training's graph. They read a checkpoint, change variables, and call
Python functions that this process has registered."""
# fmt: on
MODELS = DEEPMD | TENSORFLOW
SAVING = frozenset({"SaveV2"})
"""Operations that write a checkpoint, to a name in the graph unless the process gives one."""
SAVED, RESTORE = "save/control_dependency", "save/restore_all"
"""What TensorFlow's Saver runs to write and to read a checkpoint."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
LAST_FIELD = 2**29 - 1
Fields = Iterator[tuple[int, memoryview]]


@dataclass(frozen=True)
class Node:
    """One node of a graph."""

    name: str
    operations: tuple[str, ...]
    inputs: tuple[str, ...]


def check_model(graph: bytes) -> None:
    """Raises ValueError, naming the operation, if a frozen model may do more than compute."""
    _check_operations(_graph(memoryview(graph)), MODELS)


@lru_cache(maxsize=256)
def check_model_file(path: Path, modified: int) -> None:
    """`check_model` for the file at `path`, once until it is `modified`, a time in ns."""
    check_model(path.read_bytes())


def check_checkpoint(meta: bytes) -> None:
    """Raises ValueError if the graph that belongs to a checkpoint (`.meta`) may do more than
    compute when the checkpoint is read."""
    nodes: list[Node] = []
    for number, value in fields(memoryview(meta)):
        if number == 2:
            nodes += _graph(value)
        elif number == 3:
            _check_saver(value)
    _check_operations(nodes, MODELS | TRAINING | SAVING)
    saving = {node.name for node in nodes if SAVING.intersection(node.operations)} | {SAVED}
    for node in nodes:
        used = {each.lstrip("^").partition(":")[0] for each in node.inputs}
        if used & saving and node.name != SAVED:
            raise ValueError(f"node {node.name!r} writes a file")


def graph_of(meta: bytes) -> bytes:
    """The GraphDef of a checkpoint's `.meta`."""
    return b"".join(bytes(value) for number, value in fields(memoryview(meta)) if number == 2)


def texts_of(graph: bytes, name: str) -> Iterator[str]:
    """Every text that the node `name` may hold. Raises ValueError if it is not a constant."""
    for number, value in fields(memoryview(graph)):
        if number == 1 and (node := read_node(value)).name == name:
            if node.operations != ("Const",):
                raise ValueError(f"node {name!r} is not a constant")
            yield from map(_text, _texts(value))


def _texts(node: memoryview) -> Iterator[memoryview]:
    """Contents of the tensors among the attributes of a node."""
    for attribute in _inner(node, 5):
        for value in _inner(attribute, 2):
            for tensor in _inner(value, 8):
                if any(_inner(tensor, 4)):
                    raise ValueError("a text constant in an unusual form")
                yield from _inner(tensor, 8)


def _inner(message: memoryview, number: int) -> Iterator[memoryview]:
    return (value for found, value in fields(message) if found == number)


def _check_operations(nodes: list[Node], allowed: frozenset[str]) -> None:
    if not nodes:
        raise ValueError("not a TensorFlow graph")
    for node in nodes:
        for operation in node.operations:
            if operation not in allowed:
                raise ValueError(
                    f"node {node.name!r}: operation {operation!r} is none of DeePMD-kit's models"
                )


def _check_saver(saver: memoryview) -> None:
    for number, value in fields(saver):
        if number == 3 and _text(value) != RESTORE:
            raise ValueError(f"the checkpoint is read by {_text(value)!r}, not {RESTORE!r}")


def _graph(graph: memoryview) -> list[Node]:
    """The nodes of a GraphDef and of the functions in its library."""
    nodes = []
    for number, value in fields(graph):
        if number == 1:
            nodes.append(read_node(value))
        elif number == 2:
            functions = (each for field, each in fields(value) if field == 1)
            for function in functions:
                nodes += [read_node(each) for field, each in fields(function) if field == 3]
    return nodes


def read_node(node: memoryview) -> Node:
    texts = [(number, _text(value)) for number, value in fields(node) if number in (1, 2, 3)]
    names, operations, inputs = (tuple(t for n, t in texts if n == k) for k in (1, 2, 3))
    return Node("".join(names[-1:]), operations, inputs)


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8", "replace")


def fields(message: memoryview) -> Fields:
    """Numbers and contents of the fields of a message that have a length: texts and messages."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if not 0 < number <= LAST_FIELD:
            raise ValueError("not a TensorFlow graph")
        if kind == VARINT:
            _, at = _varint(message, at)
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise ValueError("not a TensorFlow graph")
        if at + length > len(message):
            raise ValueError("not a TensorFlow graph, or cut off")
        if kind == BYTES:
            yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte, at = message[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("not a TensorFlow graph, or cut off")
