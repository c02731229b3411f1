"""The traced module -> an ONNX graph of the operators that onnxruntime has fast kernels for.

A style has one small function per traced operator (export.to_onnx.operators); an operator that is not in its table
stops the export. The graph holds no weights: they stay in slots of the external data file, which
export.weights.stream fills.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import fx

from export.models.attention import AttentionNode
from export.models.shape import EMBEDDING, Config
from export.scheme import Scheme
from export.to_onnx.trace import DECODER, trace
from export.weights.slots import DTYPES, Slot, SlotId

MICROSOFT = "com.microsoft"
OPSETS = {"": 21, MICROSOFT: 1}
IR_VERSION = 10
# For guesses that are checked in one forward: an input that need not be given, the first position, counted from the
# end, whose logits are wanted (left out: -1, the last), and the output that has them. `logits` has the last one's in
# any case, because that is what onnxruntime-genai takes.
TOKEN_LOGITS, TOKEN_LOGITS_FROM = "token_logits", "token_logits_from"
# For CUDA, an input that need not be given: how long the whole sequence will be, when a call is only its first part.
SEQUENCE_TOKENS = "sequence_tokens"
FLOATS = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


@dataclass(frozen=True, kw_only=True)
class GraphStyle:
    """How a graph is written for one execution provider: export.to_onnx.operators, export.to_onnx.directml."""

    lowerings: Mapping[Any, Callable[[Graph, fx.Node], None]]
    lengths: Callable[..., tuple[dict[str, ir.Value], list[ir.Value]]]  # see sequence_lengths
    activations: str  # float32 or float16: of weights that stay float, scales, KV cache and logits too
    scales: str  # what scales are rounded to: a graph with other activations has the same weights
    zero_points: bool  # whether MatMulNBits is given the zero points that it has by default
    token_logits: bool = True  # whether the graph has the output TOKEN_LOGITS
    int8_cache: bool = False  # whether the KV cache is int8, with scales among the weights
    window_cache: bool = False  # whether it keeps only the sliding window (export.to_onnx.sizes)


@dataclass
class Graph:
    """The ONNX graph under construction, and what each traced value became."""

    config: Config
    scheme: Scheme
    style: GraphStyle
    accuracy_level: int
    side_matrices: Collection[str]  # those that side adapters change
    slots: Mapping[SlotId, Slot]  # the places in the data file
    nodes: list[ir.Node] = field(default_factory=list)
    initializers: dict[str, ir.Value] = field(default_factory=dict)
    values: dict[Any, Any] = field(default_factory=dict)
    parameters: dict[fx.Node, str] = field(default_factory=dict)  # placeholder -> the checkpoint's name
    side_inputs: list[ir.Value] = field(default_factory=list)  # those that need not be given
    positions: ir.Value | None = None  # the input position_ids, where the style has one

    @property
    def float_type(self) -> ir.DataType:
        return FLOATS[self.style.activations]

    @property
    def cache_type(self) -> ir.DataType:
        return ir.DataType.INT8 if self.style.int8_cache else self.float_type

    def add(
        self,
        name: str,
        op: str,
        inputs: list[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
    ) -> list[ir.Value]:
        """Append one node; its outputs are named after it."""
        results = [ir.Value(name=f"{name}/output_{i}") for i in range(outputs)]
        self.nodes.append(ir.node(op, inputs, attributes or {}, domain=domain, outputs=results, name=name))
        return results

    def weight(self, id: SlotId, *, name: str | None = None, shape: tuple[int, ...] | None = None) -> ir.Value:
        """An initializer whose bytes lie in the external data file. Another `name` and `shape` give a slot's bytes a
        second reading."""
        name = name or str(id)
        if name not in self.initializers:
            place = self.slots[id]
            shape = shape or place.shape
            dtype = FLOATS.get(place.dtype) or ir.DataType[place.dtype.upper()]
            length = math.prod(shape) * DTYPES[place.dtype].itemsize
            tensor = ir.ExternalTensor(place.file, place.offset, length, dtype, shape=ir.Shape(shape), name=name)
            self.initializers[name] = ir.Value(
                name=name, const_value=tensor, type=ir.TensorType(dtype), shape=ir.Shape(shape)
            )
        return self.initializers[name]

    def constant(self, name: str, values: list[int] | float, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """A small constant inside the graph."""
        if name not in self.initializers:
            tensor = ir.tensor(values, dtype=dtype, name=name)
            shape = ir.Shape([len(values)] if isinstance(values, list) else [])
            self.initializers[name] = ir.Value(name=name, const_value=tensor, type=ir.TensorType(dtype), shape=shape)
        return self.initializers[name]

    def table(self, name: str, values: npt.NDArray[Any]) -> ir.Value:
        """A table of numbers inside the graph."""
        if name not in self.initializers:
            tensor = ir.tensor(values, name=name)
            self.initializers[name] = ir.Value(
                name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape)
            )
        return self.initializers[name]

    def side_input(self, name: str, shape: tuple[int | str, int | str]) -> ir.Value:
        """An input of the graph for a side adapter. Its rank, the text in `shape`, is 0 if it is not given."""
        empty = ir.tensor(np.zeros([size if isinstance(size, int) else 0 for size in shape], np.float32), name=name)
        value = ir.Value(name=name, const_value=empty, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
        self.side_inputs.append(value)
        self.initializers[name] = value
        return value

    def branch(self, build: Callable[[], list[ir.Value]], name: str) -> ir.Graph:
        """One way of an If: the nodes that `build` adds, and what it returns. They may read all that is outside."""
        outside, self.nodes = self.nodes, []
        outputs = build()
        nodes, self.nodes = self.nodes, outside
        return ir.Graph([], outputs, nodes=nodes, name=name)

    def option(self, name: str, values: list[int]) -> ir.Value:
        """An input of the graph that has these values if it is not given."""
        value = self.constant(name, values)
        self.side_inputs.append(value)
        return value

    def attentions(self) -> int:
        """How many layers' attention is in."""
        return sum(node.op_type in ("GroupQueryAttention", "SparseAttention", "If") for node in self.nodes)


def label(node: fx.Node) -> str:
    """A node's name from the module that it was traced from: model.layers.0.mlp -> /model/layers.0/mlp."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    path = path.removeprefix(DECODER).removeprefix(".")
    return "/" + path.replace("layers.", "layers#").replace(".", "/").replace("layers#", "layers.")


def parent(node: fx.Node) -> str:
    """The name of the layer that a node's own layer is in."""
    return label(node).rpartition("/")[0]


def attention_call(node: fx.Node) -> AttentionNode:
    """The arguments of a traced attention by name."""
    arguments: tuple[Any, ...] = node.args
    return AttentionNode(*arguments)


def build(
    config: Config,
    scheme: Scheme,
    slots: Mapping[SlotId, Slot],
    *,
    context_tokens: int,
    accuracy_level: int,
    style: GraphStyle,
    side_matrices: Collection[str] = (),
) -> ir.Model:
    """Trace the model and translate it; the weights stay references into the data file."""
    program = trace(config, context_tokens)
    graph = Graph(config, scheme, style, accuracy_level, side_matrices, slots)
    lengths, inputs = style.lengths(graph, switches=config.rope.switches(context_tokens))
    signature = program.graph_signature
    for node in program.graph.nodes:
        if node.op == "placeholder":
            target = signature.inputs_to_parameters.get(node.name) or signature.inputs_to_buffers.get(node.name)
            if target in ("cos", "sin"):
                graph.values[node] = graph.weight(SlotId(f"{target}_cache"))
            elif target is not None:
                name = target.removeprefix(f"{DECODER}.")
                # The trace may give a shared table either of its names.
                graph.parameters[node] = EMBEDDING if config.tie_word_embeddings and name == "lm_head.weight" else name
            elif node.name in lengths:
                graph.values[node] = lengths[node.name]
            else:
                value = graph_input(node, graph)
                graph.values[node] = value
                inputs.append(value)
        elif node.op == "call_function":
            if node.target not in style.lowerings:
                known = ", ".join(str(target) for target in style.lowerings)
                raise NotImplementedError(f"{node.target}: no lowering to ONNX; known: {known}")
            style.lowerings[node.target](graph, node)
    outputs = name_outputs(program, graph, config)
    inputs.sort(key=lambda value: (value.name != "input_ids", str(value.name).startswith("past")))
    result = ir.Graph(
        [*inputs, *graph.side_inputs],
        outputs,
        nodes=graph.nodes,
        initializers=list(graph.initializers.values()),
        opset_imports=OPSETS,
        name="phi3",
    )
    return ir.Model(result, ir_version=IR_VERSION, producer_name="phi-edge")


def graph_input(node: fx.Node, graph: Graph) -> ir.Value:
    """input_ids, or one of the caches past_<2 * layer + (0 key, 1 value)>."""
    if node.name == "input_ids":
        return ir.Value(
            name="input_ids",
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape(["batch_size", "sequence_length"]),
        )
    layer, part = divmod(int(node.name.removeprefix("past_")), 2)
    return ir.Value(
        name=f"past_key_values.{layer}.{('key', 'value')[part]}",
        type=ir.TensorType(graph.cache_type),
        shape=ir.Shape(["batch_size", graph.config.num_key_value_heads, "past_sequence_length", graph.config.head_dim]),
    )


def name_outputs(program: torch.export.ExportedProgram, graph: Graph, config: Config) -> list[ir.Value]:
    """logits, then present.N.key and present.N.value, then token_logits where the style has them."""
    (results,) = program.graph.output_node().args
    logits, *present = (graph.values[node] for node in results)
    logits.type = ir.TensorType(graph.float_type)
    for index, value in enumerate(present):
        value.type = ir.TensorType(graph.cache_type)
        layer, part = divmod(index, 2)
        value.name = f"present.{layer}.{('key', 'value')[part]}"
        value.shape = ir.Shape(["batch_size", config.num_key_value_heads, "total_sequence_length", config.head_dim])
    several: list[ir.Value] = []
    if graph.style.token_logits:
        logits.name, logits.shape = TOKEN_LOGITS, ir.Shape(["batch_size", "token_logits", config.vocab_size])
        several, logits = [logits], last_along(graph, "/last_logits/Slice", logits)
        logits.type = ir.TensorType(graph.float_type)
    logits.name, logits.shape = "logits", ir.Shape(["batch_size", 1, config.vocab_size])
    return [logits, *present, *several]


def last_along(graph: Graph, name: str, x: ir.Value, first: ir.Value | None = None) -> ir.Value:
    """x[:, first:], of [batch, tokens, columns]; without `first` the last token's row."""
    tokens = graph.constant("/constants/axis_1", [1])
    first = graph.constant("/constants/last", [-1]) if first is None else first
    return graph.add(name, "Slice", [x, first, graph.constant("/constants/end", [2**62]), tokens])[0]
