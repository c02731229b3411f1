"""The traced module -> an ONNX graph of the operators that onnxruntime has fast kernels for.

One small function per traced operator, in the table LOWERINGS; an operator that is not in the table stops the export.
The graph holds no weights: they stay in slots of the external data file, which export.stream fills.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

import export.attention  # noqa: F401  (registers phi_edge::group_query_attention)
from export.models.phi3 import EMBEDDING, Phi3, Phi3Config, on_meta, tensor_shapes
from export.scheme import Scheme
from export.slots import ITEM_BITS, Slot, lay_out

DATA_FILE = "model.onnx.data"
ALIGNMENT = 256  # of each tensor in the data file
MICROSOFT = "com.microsoft"
OPSETS = {"": 21, MICROSOFT: 1}
IR_VERSION = 10
FLOATS = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


class CachedPhi3(nn.Module):
    """Phi3 with its KV cache as inputs and outputs: what is traced for ONNX.

    forward(input_ids [1, tokens], last_position int32 [1], total_tokens int32 [1], sequence_tokens int32 [1], *past) ->
    logits [1, 1, vocab] of the last token, then the caches; past is key, value per layer, each
    [1, kv_heads, capacity, head_dim]. sequence_tokens chooses long rope's factors: see table_rows.
    """

    def __init__(self, model: Phi3, cos: Tensor, sin: Tensor, *, switches: bool) -> None:
        super().__init__()
        self.phi3, self.switches = model, switches
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(
        self, input_ids: Tensor, last_position: Tensor, total_tokens: Tensor, sequence_tokens: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        config, present = self.phi3.config, []
        original = config.rope.original_context_tokens
        rows = None
        if self.switches:
            rows = torch.ops.phi_edge.table_rows(input_ids, last_position, sequence_tokens, original)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            attended: Tensor
            attended, *cache = torch.ops.phi_edge.group_query_attention(
                qkv, past[2 * layer], past[2 * layer + 1], last_position, total_tokens, self.cos, self.sin, rows,
                config.num_attention_heads, config.num_key_value_heads, config.sliding_window or -1,
            )  # fmt: skip
            present.extend(cache)
            return attended

        logits = self.phi3(input_ids, attend, last_token_only=True)
        return (logits, *present)


def trace(config: Phi3Config, model: Phi3, capacity: int) -> torch.export.ExportedProgram:
    """Trace CachedPhi3 with a free number of tokens. No weight is read: the module may be on the meta device."""
    rope = torch.empty(config.rope.stacked_rows(capacity), config.rope.rotary_dim // 2, device="meta")
    module = CachedPhi3(model, rope, rope.clone(), switches=config.rope.switches(capacity)).eval()
    cache = [
        torch.empty(1, config.num_key_value_heads, capacity, config.head_dim, device="meta")
        for _ in range(2 * config.num_hidden_layers)
    ]
    ids = torch.zeros(1, 3, dtype=torch.int64, device="meta")
    length = torch.zeros(1, dtype=torch.int32, device="meta")
    tokens = torch.export.Dim("tokens", min=1, max=capacity)
    shapes = {
        "input_ids": {1: tokens},
        "last_position": None,
        "total_tokens": None,
        "sequence_tokens": None,
        "past": tuple(None for _ in cache),
    }
    lengths = (length, length.clone(), length.clone())
    return torch.export.export(module, (ids, *lengths, *cache), dynamic_shapes=shapes, strict=False)


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a graph is written for one execution provider; CPU below, export.onnx_directml for DirectML."""

    lowerings: Mapping[Any, Callable[[Graph, fx.Node], None]]
    lengths: Callable[..., tuple[dict[str, ir.Value], list[ir.Value]]]  # see sequence_lengths
    activations: str  # float32 or float16: of weights that stay float, scales, KV cache and logits too
    scales: str  # what scales are rounded to: a graph with other activations has the same weights
    zero_points: bool  # whether MatMulNBits is given the zero points that it has by default


@dataclass
class Graph:
    """The ONNX graph under construction, and what each traced value became."""

    config: Phi3Config
    scheme: Scheme
    form: Form
    accuracy_level: int
    slots: Mapping[str, Slot]  # initializer name -> its place in the data file
    nodes: list[ir.Node] = field(default_factory=list)
    initializers: dict[str, ir.Value] = field(default_factory=dict)
    values: dict[Any, Any] = field(default_factory=dict)
    parameters: dict[fx.Node, str] = field(default_factory=dict)  # placeholder -> the checkpoint's name
    positions: ir.Value | None = None  # the input position_ids, where the form has one

    @property
    def float_type(self) -> ir.DataType:
        return FLOATS[self.form.activations]

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

    def weight(self, name: str, *, slot: str | None = None, shape: tuple[int, ...] | None = None) -> ir.Value:
        """An initializer whose bytes lie in the external data file, in the slot of its name or in another's."""
        if name not in self.initializers:
            place = self.slots[slot or name]
            shape = shape or place.shape
            dtype = FLOATS.get(place.dtype) or ir.DataType[place.dtype.upper()]
            length = math.prod(shape) * ITEM_BITS[place.dtype] // 8
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


def label(node: fx.Node) -> str:
    """A node's name from the module that it was traced from: model.layers.0.mlp -> /model/layers.0/mlp."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    path = path.removeprefix("phi3").removeprefix(".")
    return "/" + path.replace("layers.", "layers#").replace(".", "/").replace("layers#", "layers.")


def embedding(graph: Graph, node: fx.Node) -> None:
    table, ids = node.args
    assert isinstance(table, fx.Node)
    name, scheme = graph.parameters[table], graph.scheme
    if scheme.embedding_bits is None:
        result = graph.add(label(node) + "/Gather", "Gather", [graph.weight(name), graph.values[ids]])
    else:
        result = graph.add(
            label(node) + "/GatherBlockQuantized",
            "GatherBlockQuantized",
            [graph.weight(f"{name}_q"), graph.values[ids], graph.weight(f"{name}_scales")],
            {"bits": scheme.embedding_bits, "block_size": scheme.block_size, "gather_axis": 0, "quantize_axis": 1},
            domain=MICROSOFT,
        )
    graph.values[node] = result[0]


def linear(graph: Graph, node: fx.Node) -> None:
    x, weight = node.args[:2]
    assert isinstance(weight, fx.Node)
    name, scheme = graph.parameters[weight], graph.scheme
    tied = name == EMBEDDING  # a tied lm_head reads the embedding's bytes, in MatMulNBits's shape
    bits = scheme.embedding_bits if tied else scheme.bits
    if bits is None:
        result = graph.add(
            label(node) + "/FusedMatMul",
            "FusedMatMul",
            [graph.values[x], graph.weight(name)],
            {"transB": 1},
            domain=MICROSOFT,
        )
    else:
        assert scheme.block_size
        rows, columns = weight.meta["val"].shape
        shape = (rows, columns // scheme.block_size, scheme.block_size * bits // 8)
        packed = graph.weight("lm_head.weight_q" if tied else f"{name}_q", slot=f"{name}_q", shape=shape)
        result = graph.add(
            label(node) + "/MatMulNBits",
            "MatMulNBits",
            [graph.values[x], packed, graph.weight(f"{name}_scales"), *zero_points(graph, rows, shape[1], bits)],
            {
                "K": columns,
                "N": rows,
                "bits": bits,
                "block_size": scheme.block_size,
                "accuracy_level": graph.accuracy_level,
            },
            domain=MICROSOFT,
        )
    graph.values[node] = result[0]


def zero_points(graph: Graph, rows: int, blocks: int, bits: int) -> list[ir.Value]:
    """The middle code for every block: all the same bytes, so that every matrix reads them in one slot."""
    if not graph.form.zero_points:
        return []
    row_bytes = -(-blocks * bits // 8)
    return [graph.weight(f"zero_points_{rows}_{blocks}_{bits}", slot=f"zero_points_{bits}", shape=(rows, row_bytes))]


def rms_norm(graph: Graph, node: fx.Node) -> None:
    if node in graph.values:  # the residual addition before it has already taken it in
        return
    x, _, weight, epsilon = node.args
    assert isinstance(weight, fx.Node)
    result = graph.add(
        label(node) + "/SimplifiedLayerNormalization",
        "SimplifiedLayerNormalization",
        [graph.values[x], graph.weight(graph.parameters[weight])],
        {"axis": -1, "epsilon": float(epsilon), "stash_type": 1},  # type: ignore[arg-type]
    )
    graph.values[node] = result[0]


def add(graph: Graph, node: fx.Node) -> None:
    """A residual addition. The norm that reads it (at once, or after the last token is cut out) is fused with it."""
    left, right = node.args
    norm = next((user for user in node.users if user.target is torch.ops.aten.rms_norm.default), None)
    if norm is None:
        graph.values[node] = graph.add(label(node) + "/Add", "Add", [graph.values[left], graph.values[right]])[0]
        return
    weight = norm.args[2]
    assert isinstance(weight, fx.Node)
    result = graph.add(
        label(norm) + "/SkipLayerNorm",
        "SkipSimplifiedLayerNormalization",
        [graph.values[left], graph.values[right], graph.weight(graph.parameters[weight])],
        {"epsilon": float(norm.args[3])},  # type: ignore[arg-type]
        domain=MICROSOFT,
        outputs=4,
    )
    result[1].name, result[2].name = "", ""
    graph.values[norm], graph.values[node] = result[0], result[3]


def silu(graph: Graph, node: fx.Node) -> None:
    x = graph.values[node.args[0]]
    gate = graph.add(label(node) + "/Sigmoid", "Sigmoid", [x])[0]
    graph.values[node] = graph.add(label(node) + "/SiLU", "Mul", [x, gate])[0]


def mul(graph: Graph, node: fx.Node) -> None:
    left, right = node.args
    graph.values[node] = graph.add(label(node) + "/Mul", "Mul", [graph.values[left], graph.values[right]])[0]


def chunk(graph: Graph, node: fx.Node) -> None:
    x, parts = node.args[:2]
    assert isinstance(parts, int)
    graph.values[node] = graph.add(
        label(node) + "/Split", "Split", [graph.values[x]], {"axis": -1, "num_outputs": parts}, outputs=parts
    )


def last_token(graph: Graph, node: fx.Node) -> None:
    """hidden[:, -1:], the one slice that the module makes."""
    x, *_ = node.args
    one, last, end = (graph.constant(f"/constants/{n}", [v]) for n, v in [("axis_1", 1), ("last", -1), ("end", 2**62)])
    graph.values[node] = graph.add("/last_token/Slice", "Slice", [graph.values[x], last, end, one])[0]


def get_item(graph: Graph, node: fx.Node) -> None:
    source, index = node.args
    graph.values[node] = graph.values[source][index]


def attention(graph: Graph, node: fx.Node) -> None:
    qkv, past_key, past_value, last_position, total_tokens, cos, sin, rows, *numbers = node.args
    heads, kv_heads, window = numbers
    layer = sum(1 for other in graph.nodes if other.op_type == "GroupQueryAttention")
    graph.values[node] = graph.add(
        f"/model/layers.{layer}/attn/GroupQueryAttention",
        "GroupQueryAttention",
        [
            graph.values[qkv], None, None, graph.values[past_key], graph.values[past_value],
            graph.values[last_position], graph.values[total_tokens], graph.values[cos], graph.values[sin],
            *([graph.values[rows]] if rows is not None else []),
        ],
        {
            "num_heads": heads,
            "kv_num_heads": kv_heads,
            "do_rotary": 1,
            "rotary_interleaved": 0,
            "local_window_size": window,
            "scale": float(graph.config.head_dim**-0.5),
        },
        domain=MICROSOFT,
        outputs=3,
    )  # fmt: skip


def table_rows(graph: Graph, node: fx.Node) -> None:
    """Positions, moved down to the long factors' rows where the sequence is long: the tables are never copied.

    An If that returns the short or the long table, as onnxruntime-genai's builder makes it, copies both each time.
    """
    input_ids, last_position, sequence_tokens, original = node.args
    assert isinstance(original, int)

    def op(kind: str, *inputs: ir.Value, name: str = "", **attributes: Any) -> ir.Value:
        return graph.add(f"/rope/{name or kind}", kind, list(inputs), attributes)[0]

    to = ir.DataType.INT64.value
    one = graph.constant("/constants/one", 1)
    long = op(
        "Greater", graph.values[sequence_tokens], graph.constant("/constants/original", original, ir.DataType.INT32)
    )
    offset = op("Mul", op("Cast", long, to=to), graph.constant("/constants/original_64", original))
    last = op("Cast", graph.values[last_position], name="last/Cast", to=to)
    last = op("Squeeze", last)
    end = op("Add", op("Add", last, one, name="end/Add"), offset)
    count = op("Gather", op("Shape", graph.values[input_ids]), one, axis=0)
    rows = op("Range", op("Sub", end, count), end, one)
    graph.values[node] = op("Unsqueeze", rows, graph.constant("/constants/axis_0", [0]))


def sequence_lengths(graph: Graph, *, switches: bool) -> tuple[dict[str, ir.Value], list[ir.Value]]:
    """The lengths that GroupQueryAttention wants, from the attention mask that onnxruntime-genai gives.

    With long rope's switch, the mask's ones say what is in and its width how long the sequence will be: zeros after
    the ones tell the first pieces of a long prompt that it is long. onnxruntime-genai gives no zeros (batch 1).
    Returns the traced placeholders they stand for, and the graph's input.
    """
    mask = ir.Value(
        name="attention_mask",
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape(["batch_size", "total_sequence_length"]),
    )
    one, axis = graph.constant("/constants/one", 1), graph.constant("/constants/axis_1", [1])
    total = graph.add("/lengths/ReduceSum", "ReduceSum", [mask, axis], {"keepdims": 0})[0]
    filled = total
    last = graph.add("/lengths/Sub", "Sub", [total, one])[0]
    last = graph.add("/lengths/last/Cast", "Cast", [last], {"to": ir.DataType.INT32.value})[0]
    shape = graph.add("/lengths/Shape", "Shape", [mask])[0]
    width = graph.add("/lengths/Gather", "Gather", [shape, one], {"axis": 0})[0]
    width = graph.add("/lengths/total/Cast", "Cast", [width], {"to": ir.DataType.INT32.value})[0]
    lengths = {"last_position": last, "total_tokens": width, "sequence_tokens": width}
    if switches:
        lengths["total_tokens"] = graph.add("/lengths/in/Cast", "Cast", [filled], {"to": ir.DataType.INT32.value})[0]
    return lengths, [mask]


aten = torch.ops.aten
LOWERINGS: Mapping[Any, Callable[[Graph, fx.Node], None]] = {
    aten.embedding.default: embedding,
    aten.linear.default: linear,
    aten.rms_norm.default: rms_norm,
    aten.add.Tensor: add,
    aten.mul.Tensor: mul,
    aten.silu.default: silu,
    aten.chunk.default: chunk,
    aten.slice.Tensor: last_token,
    operator.getitem: get_item,
    torch.ops.phi_edge.group_query_attention.default: attention,
    torch.ops.phi_edge.table_rows.default: table_rows,
}


CPU = Form(lowerings=LOWERINGS, lengths=sequence_lengths, activations="float32", scales="float32", zero_points=False)


def slots_for(
    config: Phi3Config, scheme: Scheme, context_tokens: int, form: Form, max_file_bytes: int | None = None
) -> dict[str, Slot]:
    """Where each tensor of this model lies in the external data, in the order of the forward pass."""
    tensors: list[tuple[str, str, tuple[int, ...]]] = []
    zeros: dict[int, int] = {}  # bits -> the bytes of the largest matrix's zero points
    for name, shape in tensor_shapes(config).items():
        bits = scheme.embedding_bits if name == EMBEDDING else scheme.bits
        if len(shape) == 1 or bits is None:
            tensors.append((name, form.activations, shape))
            continue
        assert scheme.block_size
        rows, blocks, block_bytes = shape[0], shape[1] // scheme.block_size, scheme.block_size * bits // 8
        packed = (rows, blocks * block_bytes) if name == EMBEDDING else (rows, blocks, block_bytes)
        tensors.append((f"{name}_q", "uint8", packed))
        tensors.append((f"{name}_scales", form.activations, (rows, blocks)))
        if form.zero_points and (name != EMBEDDING or config.tie_word_embeddings):
            zeros[bits] = max(zeros.get(bits, 0), rows * -(-blocks * bits // 8))
    table = (config.rope.stacked_rows(context_tokens), config.rope.rotary_dim // 2)
    tensors += [("cos_cache", form.activations, table), ("sin_cache", form.activations, table)]
    tensors += [(f"zero_points_{bits}", "uint8", (count,)) for bits, count in zeros.items()]
    slots = lay_out(tensors, file=DATA_FILE, alignment=ALIGNMENT, max_file_bytes=max_file_bytes)
    return {n: replace(s, rounded=form.scales) if n.endswith("_scales") else s for n, s in slots.items()}


def build(
    config: Phi3Config,
    scheme: Scheme,
    slots: Mapping[str, Slot],
    *,
    context_tokens: int,
    accuracy_level: int,
    form: Form,
) -> ir.Model:
    """Trace the model and translate it; the weights stay references into the data file."""
    program = trace(config, on_meta(config), context_tokens)
    graph = Graph(config, scheme, form, accuracy_level, slots)
    lengths, inputs = form.lengths(graph, switches=config.rope.switches(context_tokens))
    signature = program.graph_signature
    for node in program.graph.nodes:
        if node.op == "placeholder":
            target = signature.inputs_to_parameters.get(node.name) or signature.inputs_to_buffers.get(node.name)
            if target in ("cos", "sin"):
                graph.values[node] = graph.weight(f"{target}_cache")
            elif target is not None:
                name = target.removeprefix("phi3.")
                # The trace may give a shared table either of its names.
                graph.parameters[node] = EMBEDDING if config.tie_word_embeddings and name == "lm_head.weight" else name
            elif node.name in lengths:
                graph.values[node] = lengths[node.name]
            else:
                value = graph_input(node, graph)
                graph.values[node] = value
                inputs.append(value)
        elif node.op == "call_function":
            if node.target not in form.lowerings:
                known = ", ".join(str(target) for target in form.lowerings)
                raise NotImplementedError(f"{node.target}: no lowering to ONNX; known: {known}")
            form.lowerings[node.target](graph, node)
    outputs = name_outputs(program, graph, config)
    inputs.sort(key=lambda value: (value.name != "input_ids", str(value.name).startswith("past")))
    result = ir.Graph(
        inputs,
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
        type=ir.TensorType(graph.float_type),
        shape=ir.Shape(["batch_size", graph.config.num_key_value_heads, "past_sequence_length", graph.config.head_dim]),
    )


def name_outputs(program: torch.export.ExportedProgram, graph: Graph, config: Phi3Config) -> list[ir.Value]:
    """logits, then present.N.key and present.N.value."""
    (results,) = program.graph.output_node().args
    outputs: list[ir.Value] = []
    for index, node in enumerate(results):
        value: ir.Value = graph.values[node]
        value.type = ir.TensorType(graph.float_type)
        if index == 0:
            value.name, value.shape = "logits", ir.Shape(["batch_size", 1, config.vocab_size])
        else:
            layer, part = divmod(index - 1, 2)
            value.name = f"present.{layer}.{('key', 'value')[part]}"
            value.shape = ir.Shape(["batch_size", config.num_key_value_heads, "total_sequence_length", config.head_dim])
        outputs.append(value)
    return outputs
