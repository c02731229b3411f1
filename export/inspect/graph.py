"""What an ONNX graph has, read from its file without its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import ArtifactError

if TYPE_CHECKING:
    import onnx

MOST_BYTES = 1 << 31  # protobuf reads no more


@dataclass(frozen=True)
class Node:
    """One node. An input that is left out is ""."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Stored:
    """A tensor of the file or of its data file."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """A whole graph. `nodes` has those of its branches too; `opsets` is domain -> version."""

    producer: str
    opsets: Mapping[str, int]
    inputs: Mapping[str, str]  # name -> type
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    stored: Mapping[str, Stored]

    def of(self, *operators: str) -> list[Node]:
        """The nodes of these operators."""
        return [node for node in self.nodes if node.operator in operators]


def read_graph(path: Path) -> Graph:
    """The graph of a .onnx file; data files beside it are not read. Raises ArtifactError."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if path.stat().st_size >= MOST_BYTES:
            raise ArtifactError(f"{path}: has more than 2 GiB, which protobuf cannot read; keep the weights beside it")
        model = onnx.load(str(path), load_external_data=False)
        graphs = [model.graph, *_branches(model.graph)]
        return Graph(
            producer=model.producer_name,
            opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
            inputs={value.name: _dtype(value.type.tensor_type.elem_type) for value in model.graph.input},
            outputs=tuple(value.name for value in model.graph.output),
            nodes=tuple(_node(node) for graph in graphs for node in graph.node),
            stored={
                tensor.name: Stored(_dtype(tensor.data_type), tuple(tensor.dims))
                for graph in graphs
                for tensor in graph.initializer
            },
        )
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); give a folder whose files can be") from error
    except (DecodeError, RecursionError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise ArtifactError(f"{path}: is not an ONNX graph ({reason}); export it again") from error


def _branches(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside its nodes, such as the two branches of an If, at any depth."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield inner
                yield from _branches(inner)


def _node(node: onnx.NodeProto) -> Node:
    attributes = {attribute.name: _value(attribute) for attribute in node.attribute}
    return Node(node.op_type, tuple(node.input), tuple(node.output), attributes)


def _value(attribute: onnx.AttributeProto) -> Any:
    """As plain data. A tensor is its type, its shape and a hash; a branch is its number of nodes."""
    import onnx

    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.GraphProto):
        return f"{len(value.node)} nodes"
    if isinstance(value, onnx.TensorProto):
        digest = hashlib.sha256(value.SerializeToString()).hexdigest()
        return f"{_dtype(value.data_type)}{list(value.dims)} {digest[:12]}"
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, int | float | str):
        return value
    return [each if isinstance(each, int | float | str) else str(each)[:60] for each in value]


def _dtype(number: int) -> str:
    import onnx

    return onnx.TensorProto.DataType.Name(number).lower() if number in onnx.TensorProto.DataType.values() else "unknown"
