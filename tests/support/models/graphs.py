"""TensorFlow graphs in protobuf's wire format, and a frozen model that also writes a file."""

from __future__ import annotations

from pathlib import Path

from dpstream.shared.atoms.tensorflow_graph import fields, read_node

STRING = b"\x07"
"""DT_STRING."""


def field(number: int, content: bytes | str) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def node(name: str, operation: str, *inputs: str, attributes: bytes = b"") -> bytes:
    """A NodeDef as a field of a GraphDef."""
    words = b"".join(field(3, each) for each in inputs)
    return field(1, field(1, name) + field(2, operation) + words + attributes)


def text(name: str, content: str) -> bytes:
    """A node that holds a text."""
    tensor = b"\x08" + STRING + field(2, b"") + field(8, content)
    kind, value = b"\x30" + STRING, field(8, tensor)
    attributes = (field(1, "dtype") + field(2, kind), field(1, "value") + field(2, value))
    return node(name, "Const", attributes=b"".join(field(5, each) for each in attributes))


def writing(model: Path, target: Path, content: str) -> bytes:
    """A frozen model whose energy also writes `content` to `target`."""
    graph = text("where", str(target)) + text("what", content)
    graph += node("writes", "WriteFile", "where", "what")
    for number, value in fields(memoryview(model.read_bytes())):
        own = bytes(value)
        if number == 1 and read_node(value).name == "o_energy":
            own += field(3, "^writes")
        graph += field(number, own)
    return graph


def _varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])
