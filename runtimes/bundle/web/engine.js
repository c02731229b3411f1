// One loaded model on WebGPU. It has no text, sampling or sessions: ids in, logits out.
//
// The graph: input_ids int64 [1, S], attention_mask int64 [1, start + S], past_key_values.N.key/value
// [1, kv_heads, context, head_dim] -> logits [1, 1, vocab] of the last token, present.N.key/value. Past and present are
// the same buffers of the GPU; the mask's length says how much of them is filled.
import * as ort from "./lib/onnxruntime-web/ort.webgpu.min.js";
import { adapterName, cacheBytes, floatType } from "./adapter.js";

const PIECE_TOKENS = 512; // a prompt is prefilled in such pieces, so that a cancel need not wait for all of it
// With subgroups of 4, as SwiftShader has them, onnxruntime-web's attention over 32 tokens and more is wrong.
const NARROW_SUBGROUP = 8, NARROW_PIECE_TOKENS = 16;

export class Engine {
  #session; #kv; #logits; #switchTokens; #buffers;

  // `files` are the artifact's files as bytes, by name. They may be dropped afterwards.
  static async open(manifest, files, adapter) {
    const file = (end) => new URL(`./lib/onnxruntime-web/ort-wasm-simd-threaded.asyncify.${end}`, import.meta.url).href;
    ort.env.wasm.wasmPaths = { mjs: file("js"), wasm: file("wasm") };
    ort.env.wasm.numThreads = 1; // threads need headers that not every static server sends; the GPU does the work
    ort.env.logLevel = "error";
    const names = Object.keys(manifest.files);
    const graph = names.find((name) => name.endsWith(".onnx"));
    const data = names.filter((name) => name.startsWith(`${graph}.data`));
    const session = await ort.InferenceSession.create(files[graph], {
      executionProviders: ["webgpu"],
      externalData: data.map((path) => ({ path, data: files[path] })),
      logSeverityLevel: 3, // not that the lengths are computed on the CPU
      enableMemPattern: false, // every token has a new mask length
    });
    return new Engine(manifest, session, await ort.env.webgpu.device, adapter);
  }

  constructor(manifest, session, device, adapter) {
    const { layers, kv_heads, head_dim, vocab_size } = manifest.model;
    this.contextTokens = manifest.context_tokens;
    this.vocabSize = vocab_size;
    this.versions = { "onnxruntime-web": ort.env.versions.web };
    this.accelerator = adapterName(adapter);
    this.activations = floatType(manifest);
    this.pieceTokens = adapter.info.subgroupMinSize < NARROW_SUBGROUP ? NARROW_PIECE_TOKENS : PIECE_TOKENS;
    this.#switchTokens = manifest.rope.switch_tokens;
    this.#session = session;
    this.#kv = {};
    this.#buffers = [];
    const dims = [1, kv_heads, this.contextTokens, head_dim];
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    for (let layer = 0; layer < layers; layer++) {
      for (const part of ["key", "value"]) {
        const buffer = device.createBuffer({ size: cacheBytes(manifest), usage });
        this.#buffers.push(buffer);
        this.#kv[`${layer}.${part}`] = ort.Tensor.fromGpuBuffer(buffer, { dataType: this.activations, dims });
      }
    }
  }

  // Whether a sequence of so many tokens takes the long rope factors from its first token on.
  isLong(length) {
    return this.#switchTokens !== null && length > this.#switchTokens;
  }

  // Write the keys and values of `ids` at positions start.. -> the last one's logits, Float32Array [vocab]. `long`: the
  // sequence that these ids are a piece of is long.
  async forward(ids, start, long) {
    const end = start + ids.length;
    const mask = new BigInt64Array(Math.max(end, long ? this.#switchTokens + 1 : 0));
    mask.fill(1n, 0, end);
    const feeds = {
      input_ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      attention_mask: new ort.Tensor("int64", mask, [1, mask.length]),
    };
    const fetches = { logits: null };
    for (const [tail, tensor] of Object.entries(this.#kv)) {
      feeds[`past_key_values.${tail}`] = tensor;
      fetches[`present.${tail}`] = tensor;
    }
    const { logits } = await this.#session.run(feeds, fetches);
    return logits.data instanceof Float32Array ? logits.data : Float32Array.from(logits.data);
  }

  async close() {
    await this.#session.release();
    for (const buffer of this.#buffers) buffer.destroy();
  }
}
