"""ONNX files written byte by byte: their format is a protobuf of few messages, so no package is needed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

FLOAT, FLOAT16, UINT8 = 1, 10, 2
"""Numbers of ONNX's element types."""
_OF_ARRAY = {np.dtype(np.float32): FLOAT, np.dtype(np.float16): FLOAT16, np.dtype(np.int64): 7}
Shape = Sequence[int | str]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _tensor(name: str, array: np.ndarray) -> bytes:
    dims = b"".join(_field(1, side) for side in array.shape)
    return dims + _field(2, _OF_ARRAY[array.dtype]) + _field(8, name) + _field(9, array.tobytes())


def _value(name: str, kind: int, shape: Shape) -> bytes:
    dims = b"".join(_field(1, _field(1 if isinstance(side, int) else 2, side)) for side in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))


def node(kind: str, inputs: Sequence[str], output: str, **attributes: int | Sequence[int]) -> bytes:
    """One node of a graph. attributes: an integer or several."""
    out = b"".join(_field(1, each) for each in inputs) + _field(2, output) + _field(4, kind)
    for name, value in attributes.items():
        if isinstance(value, int):
            out += _field(5, _field(1, name) + _field(3, value) + _field(20, 2))
        else:
            out += _field(5, _field(1, name) + b"".join(_field(8, each) for each in value) + _field(20, 7))
    return out


def write(
    file: Path,
    nodes: Sequence[bytes],
    weights: dict[str, np.ndarray],
    *,
    takes: Shape = (1, 3, 64, 64),
    gives: Shape | None = (1, 1, "h", "w"),
    kind: int = FLOAT,
    inputs: Sequence[str] = ("image",),
) -> str:
    """Writes a network whose nodes lead from `inputs` to "mask"; returns the file's path."""
    graph = b"".join(_field(1, each) for each in nodes) + _field(2, "network")
    graph += b"".join(_field(5, _tensor(name, array)) for name, array in weights.items())
    graph += b"".join(_field(11, _value(name, kind, takes)) for name in inputs)
    graph += _field(12, _value("mask", kind, gives) if gives else _field(1, "mask"))
    opset = _field(1, "") + _field(2, 17)
    file.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, opset))
    return str(file)


def red_detector(file: Path, *, sigmoid: bool = False, takes: Shape = (1, 3, 64, 64), kind: int = FLOAT) -> str:
    """A network that knows its product: logit 20 · (red − green) − 6 of normalised pixels."""
    dtype = np.float16 if kind == FLOAT16 else np.float32
    weights = {"w": np.array([20, -20, 0], dtype).reshape(1, 3, 1, 1), "b": np.array([-6], dtype)}
    nodes = [node("Conv", ["image", "w", "b"], "logits" if sigmoid else "mask")]
    if sigmoid:
        nodes.append(node("Sigmoid", ["logits"], "mask"))
    return write(file, nodes, weights, takes=takes, gives=(takes[0], 1, *takes[2:]), kind=kind)


def unet(file: Path, *, takes: Shape = (1, 3, 64, 64)) -> str:
    """A tiny U-Net with random weights: down, up, beside the image, to one map of probabilities."""
    rng = np.random.default_rng(0)
    weights = {
        "down": rng.normal(0, 0.5, (4, 3, 3, 3)).astype(np.float32),
        "up": rng.normal(0, 0.5, (4, 4, 2, 2)).astype(np.float32),
        "out": rng.normal(0, 0.5, (1, 7, 3, 3)).astype(np.float32),
    }
    nodes = [
        node("Conv", ["image", "down"], "a", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], "b"),
        node("ConvTranspose", ["b", "up"], "c", strides=[2, 2]),
        node("Concat", ["c", "image"], "d", axis=1),
        node("Conv", ["d", "out"], "e", pads=[1, 1, 1, 1]),
        node("Sigmoid", ["e"], "mask"),
    ]
    return write(file, nodes, weights, takes=takes, gives=(takes[0], 1, *takes[2:]))
