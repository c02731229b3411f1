// Phi Edge in a browser: the generate interface over WebGPU (docs/web.md of the project).
//
//   import { openRuntime } from "./phi-edge.js";
//   const runtime = await openRuntime();
//   for await (const event of runtime.generate({ messages: [{ role: "user", content: "Hello" }] })) {
//     if (event.text) write(event.text);
//   }
//
// The fields of a request and of the events have the same names, meanings and defaults as in Python (runtimes/api.py).
import { chooseModel } from "./adapter.js";
import { Engine } from "./engine.js";
import { RequestError, TokenLoop } from "./loop.js";
import { dropFiles, loadFiles, loadManifest, loadModels } from "./store.js";
import { StopScanner, TextJoiner } from "./stream.js";
import { Tokenizer } from "./text.js";

export { RequestError };

const SAMPLING = {
  temperature: 0, top_k: null, top_p: null, min_p: null,
  repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0, seed: null,
};
const DEFAULTS = {
  prompt: null, messages: null, token_ids: null, max_new_tokens: 256, ...SAMPLING,
  stop: [], stop_ids: [], ignore_stop_ids: false, deadline_s: null, session: null, signal: null,
};

// Download, check and load the model in the folder `model`; left out, the one of this bundle that the graphics adapter
// can run. `onProgress` gets {file, loaded, total, cached} in bytes.
export async function openRuntime({ model, onProgress } = {}) {
  const bases = model === undefined ? await loadModels(import.meta.url) : [new URL(model, globalThis.location?.href)];
  const { manifest, engine, files } = await openEngine(bases, onProgress);
  const json = (name) => (files[name] ? JSON.parse(new TextDecoder().decode(files[name])) : {});
  const template = files["chat_template.jinja"];
  const tokenizer = new Tokenizer(
    json("tokenizer.json"), json("tokenizer_config.json"), template ? new TextDecoder().decode(template) : null,
  );
  return new Runtime(manifest, engine, tokenizer);
}

// The model without text: what openRuntime and the agent share. `bases` are the folders to choose from.
export async function openEngine(bases, onProgress) {
  const models = await Promise.all(bases.map(async (base) => ({ base, manifest: await loadManifest(base) })));
  const { base, manifest, adapter } = await chooseModel(models);
  for (const other of bases) if (other !== base) await dropFiles(other); // of when the adapter was another
  const names = Object.keys(manifest.files).filter((name) => name !== "layout.json" && name !== "genai_config.json");
  const files = await loadFiles(base, manifest, names, onProgress);
  const engine = await Engine.open(manifest, files, adapter);
  for (const name of names) if (name.includes(".onnx")) delete files[name]; // gigabytes, which the GPU has now
  return { manifest, engine, files };
}

export class Runtime {
  #engine; #loop; #tokenizer;

  constructor(manifest, engine, tokenizer) {
    this.manifest = manifest;
    this.accelerator = engine.accelerator;
    this.activations = engine.activations; // "float16" or "float32"
    this.hasTemplate = tokenizer.hasTemplate;
    this.#engine = engine;
    this.#loop = new TokenLoop(engine);
    this.#tokenizer = tokenizer;
  }

  // Events {type: "token", id, text, at_s}, then one {type: "done", finish, text, stop_string, usage, timings, error}.
  // Ending the iteration (break), or request.signal, cancels within one token. A RequestError comes from the call.
  generate(request) {
    const accepted = performance.now();
    const whole = checked(request);
    const ids = this.#encode(whole);
    const stop_ids = whole.ignore_stop_ids ? [] : [...this.manifest.tokens.stop, ...whole.stop_ids];
    const sampling = Object.fromEntries(Object.keys(SAMPLING).map((name) => [name, whole[name]]));
    sampling.seed = BigInt(whole.seed ?? crypto.getRandomValues(new BigUint64Array(1))[0]);
    const { max_new_tokens, deadline_s, session } = whole;
    const tokens = this.#loop.stream({ ids, stop_ids, sampling, max_new_tokens, deadline_s, session }, accepted);
    return this.#events(whole, ids, tokens);
  }

  // How many tokens a text, or a conversation through the chat template, has.
  countTokens(text) {
    return this.#encode({ ...DEFAULTS, ...(typeof text === "string" ? { prompt: text } : { messages: text }) }).length;
  }

  // Free the model.
  async close() {
    await this.#engine.close();
  }

  #encode({ prompt, messages, token_ids }) {
    if (token_ids !== null) return [...token_ids];
    return prompt !== null ? this.#tokenizer.encodePrompt(prompt) : this.#tokenizer.encodeChat(messages);
  }

  async *#events(request, ids, tokens) {
    const joiner = new TextJoiner(this.#tokenizer.bytes, ids), scanner = new StopScanner(request.stop);
    const cancel = () => this.#loop.cancel();
    let stopString = null;
    if (request.signal?.aborted) cancel();
    request.signal?.addEventListener("abort", cancel);
    try {
      for await (const record of tokens) {
        if (record.finish !== undefined) {
          yield this.#done(record, stopString, scanner.rest());
        } else {
          const { text, stop } = scanner.add(joiner.add(record.id));
          if (stop !== null) {
            stopString = stop;
            this.#loop.cancel();
          }
          yield { type: "token", id: record.id, text, at_s: record.at_s };
        }
      }
    } finally {
      request.signal?.removeEventListener("abort", cancel);
    }
  }

  #done({ finish, stop_id, usage, prefill_s, total_s, error }, stopString, text) {
    if (stopString !== null) finish = "stop";
    else if (stop_id !== null) finish = this.manifest.tokens.stop.includes(stop_id) ? "eos" : "stop";
    return { type: "done", finish, text, stop_string: stopString, usage, timings: { prefill_s, total_s }, error };
  }
}

// The request with every default. A field that is not known is refused, never ignored.
function checked(request) {
  const unknown = Object.keys(request).find((name) => !(name in DEFAULTS));
  if (unknown) throw new RequestError(`unknown field ${unknown}; known: ${Object.keys(DEFAULTS).join(", ")}`);
  const whole = { ...DEFAULTS, ...request };
  const given = ["prompt", "messages", "token_ids"].filter((name) => whole[name] !== null);
  if (given.length !== 1) throw new RequestError(`give one of prompt, messages and token_ids, not ${given.join(" and ") || "none"}`);
  if (whole.stop.some((stop) => typeof stop !== "string" || stop === "")) throw new RequestError("a stop is a text of at least one character");
  return whole;
}
