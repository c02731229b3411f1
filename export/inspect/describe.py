"""A folder with a model as plain tables, ours or another tool's, so that two of them can be compared line by line."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from export.artifact import MANIFEST, MODEL_SUFFIX, Artifact, describe_files, open_artifact, verify
from export.errors import ArtifactError
from export.inspect.foreign import model_file
from export.inspect.graph import Graph, Node, read_graph
from export.inspect.names import LAYOUT, is_foreign
from export.inspect.program import read_program
from export.strict import read_json
from export.weights.layout_file import TensorLayout, read_layout

# Compared by their hash alone: one has a line for each token, the other is the precision table.
BY_HASH = ("tokenizer.json", LAYOUT)
NOT_COMPARED = ("files", "created_at", "coverage")  # of the manifest: files and graph are tables of their own
TABLES = ("manifest", "settings", "precision", "graph", "files")
# Operators with quantised weights -> which input is the codes. Both have zero points as input 3.
WEIGHTS = {"MatMulNBits": 1, "GatherBlockQuantized": 0}
ZERO_POINTS = 3

# A table's lines, key -> value, both plain. None: the folder has no such table.
Table = Mapping[str, Any]


def describe(folder: Path) -> Mapping[str, Table | None]:
    """The tables of one folder, by the names in TABLES. Raises ArtifactError."""
    if is_foreign(folder):
        artifact, model = None, model_file(folder)
        home = model.parent
        # Of a file that was named, only its own data file belongs to it.
        belongs = f"{model.name}*" if folder.is_file() else "*"
        files = describe_files(home, sorted(path.name for path in home.glob(belongs) if path.is_file()))
    else:
        artifact = open_artifact(folder)
        verify(artifact)
        home, model, files = folder, _model_of(artifact), dict(artifact.manifest.files)
    graph = read_graph(model) if model.suffix == ".onnx" else None
    return {
        "manifest": _manifest(folder) if artifact is not None else None,
        "settings": _settings(home, files),
        "precision": precision(artifact, graph),
        "graph": graph_table(graph) if graph is not None else _other_table(model),
        "files": {name: f"{file.bytes} bytes, sha256 {file.sha256[:12]}" for name, file in files.items()},
    }


def _model_of(artifact: Artifact) -> Path:
    for name in artifact.manifest.files:
        if name.endswith(tuple(MODEL_SUFFIX.values())):
            return artifact.path(name)
    raise ArtifactError(
        f"{artifact.folder / MANIFEST}: lists no {MODEL_SUFFIX[artifact.manifest.format]}; export it again"
    )


def _manifest(folder: Path) -> Table:
    content = read_json(folder / MANIFEST, ArtifactError, "export it again")
    return flat({key: value for key, value in content.items() if key not in NOT_COMPARED})


def _settings(home: Path, files: Mapping[str, Any]) -> Table:
    """Every JSON file's keys, and every chat template, under the file's name."""
    lines: dict[str, Any] = {}
    for name in files:
        if name.endswith(".json") and name not in BY_HASH:
            content = read_json(home / name, ArtifactError, "export it again")
            lines |= {f"{name}: {key}": value for key, value in flat(content).items()}
        elif name.endswith(".jinja"):
            lines[name] = (home / name).read_text(encoding="utf-8", errors="replace")
    return lines


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested tables as one: {"a": {"b": 1}} -> {"a.b": 1}. Lists are values."""
    if not isinstance(content, dict) or not content:
        return {prefix: content}
    lines: dict[str, Any] = {}
    for key, value in content.items():
        lines |= flat(value, f"{prefix}.{key}" if prefix else key)
    return lines


def precision(artifact: Artifact | None, graph: Graph | None) -> Table | None:
    """Tensor -> how it is stored: by layout.json of ours, and by the graph of others."""
    if artifact is not None and artifact.find(LAYOUT) is not None:
        return {tensor.name: _stored_as(tensor) for tensor in read_layout(artifact)}
    return dict(_precisions(graph)) if graph is not None else None


def _stored_as(tensor: TensorLayout) -> str:
    if tensor.bits is None:
        return ", ".join(sorted({slot.dtype for slot in tensor.slots.values()}))
    return _spell(tensor.bits, tensor.block_size, tensor.zero_points)


def _spell(bits: Any, block_size: Any, zero_points: bool) -> str:
    return f"{bits} bits, blocks of {block_size}" + (", zero points" if zero_points else "")


def _precisions(graph: Graph) -> Iterator[tuple[str, str]]:
    """Quantised weights by their nodes; the matrices that stay float by their type."""
    quantised: set[str] = set()
    for node in graph.of(*WEIGHTS):
        quantised |= set(node.inputs)
        zero_points = any(node.inputs[ZERO_POINTS : ZERO_POINTS + 1])
        how = _spell(node.attributes.get("bits", 4), node.attributes.get("block_size"), zero_points)
        yield node.inputs[WEIGHTS[node.operator]], how
    for name, tensor in graph.stored.items():
        if len(tensor.shape) > 1 and name not in quantised and "float" in tensor.dtype:
            yield name, tensor.dtype


def graph_table(graph: Graph) -> Table:
    """Operators and how often; each attribute's values and how often; inputs, outputs and opsets."""
    counts = Counter(node.operator for node in graph.nodes)
    return {
        **{operator: f"{number} nodes" for operator, number in sorted(counts.items())},
        **dict(_attributes(graph.nodes)),
        "inputs": ", ".join(f"{name} {kind}" for name, kind in graph.inputs.items()),
        "outputs": ", ".join(graph.outputs),
        "opsets": ", ".join(f"{domain} {version}" for domain, version in sorted(graph.opsets.items())),
        "producer": graph.producer,
    }


def _attributes(nodes: tuple[Node, ...]) -> Iterator[tuple[str, str]]:
    values: dict[str, Counter[str]] = {}
    for node in nodes:
        for name, value in node.attributes.items():
            values.setdefault(f"{node.operator}.{name}", Counter())[json.dumps(value)] += 1
    for name, seen in sorted(values.items()):
        yield name, ", ".join(f"{value} in {number}" for value, number in sorted(seen.items()))


def _other_table(model: Path) -> Table:
    return file_table(model) if model.suffix == ".gguf" else program_table(model)


def file_table(model: Path) -> Table:
    """What a GGUF file says before its tensors; of lists with an entry for each token, their hash."""
    import gguf

    try:
        fields = gguf.GGUFReader(model).fields
    except (OSError, ValueError, IndexError) as error:
        raise ArtifactError(f"{model}: cannot be read as a GGUF file ({error}); export it again") from error
    values = {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}
    return {name: _short(value) if isinstance(value, list) else value for name, value in values.items()}


def _short(values: list[Any]) -> str:
    digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    return f"{len(values)} values, sha256 {digest[:12]}"


def program_table(model: Path) -> Table:
    """Delegates and operators of an ExecuTorch program and how often, and what its constant methods return."""
    program = read_program(model)
    calls = {
        f"{place}: {operator}": f"{number} calls"
        for place, operators in program.coverage.items()
        for operator, number in operators.items()
    }
    return {**calls, **{name: list(values) for name, values in program.constants.items()}}
