// A chat with the model in this browser.
import { chat } from "./chat.js";
import { openRuntime } from "./phi-edge.js";

let runtime = null;

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

async function open(progress) {
  const onProgress = ({ file, loaded, total, cached }) => {
    const from = cached ? "from this browser's cache" : "downloaded";
    progress(loaded / total, `${megabytes(loaded)} of ${megabytes(total)}: ${file} ${from}`);
  };
  runtime = await openRuntime({ onProgress });
  const { source, context_tokens } = runtime.manifest;
  return `${source.name}, context ${context_tokens} tokens, ${runtime.activations} on ${runtime.accelerator}`;
}

async function* answer(messages, signal) {
  const request = { messages, max_new_tokens: runtime.manifest.context_tokens, session: "page", signal };
  for await (const { type, text, finish, error } of runtime.generate(request)) {
    if (finish === "error") throw new Error(error);
    yield { text, tokens: type === "token" ? 1 : 0, cut: finish === "length" };
  }
}

chat({ open, answer });
