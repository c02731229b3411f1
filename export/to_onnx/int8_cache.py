"""An int8 KV cache: GroupQueryAttention quantises each new key and value by the scales of their channels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from export.to_onnx.graph import MICROSOFT, Graph, attention_call
from export.to_onnx.operators import CPU, LOWERINGS, group_query_attention
from export.weights.kv_scales import scale_ids

K_SCALE = 12  # the operator's input, which v_scale follows


def attention(graph: Graph, node: fx.Node) -> None:
    layer = graph.attentions()
    inputs, attributes = group_query_attention(graph, attention_call(node))
    inputs += [None] * (K_SCALE - len(inputs))
    inputs += [graph.weight(id) for id in scale_ids(layer)]
    attributes |= {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
    name = f"/model/layers.{layer}/attn/GroupQueryAttention"
    graph.values[node] = graph.add(name, "GroupQueryAttention", inputs, attributes, domain=MICROSOFT, outputs=3)


INT8_CACHE = replace(CPU, lowerings={**LOWERINGS, torch.ops.phi_edge.attention.default: attention}, int8_cache=True)
