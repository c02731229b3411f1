// A chat with the server that this page came from.
import { chat } from "./chat.js";

let model = "";
let key = "";

async function call(path, options = {}) {
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401 && (key = window.prompt("API key of this server") || "")) return call(path, options);
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    const wait = response.headers.get("Retry-After");
    throw new Error((body?.error?.message ?? `the server answered ${response.status}`) + (wait ? ` (${wait} s)` : ""));
  }
  return response;
}

// The objects of a stream of server-sent events.
async function* objects(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

async function open() {
  const [{ id, context_tokens }] = (await (await call("v1/models")).json()).data;
  model = id;
  return `${id}, context ${context_tokens} tokens`;
}

async function* answer(messages, signal) {
  const body = JSON.stringify({ model, messages, stream: true, logprobs: true }); // they say how many tokens a piece is of
  for await (const object of objects(await call("v1/chat/completions", { method: "POST", body, signal }))) {
    if (object.error) throw new Error(object.error.message);
    const [choice] = object.choices;
    yield {
      text: choice.delta.content ?? "",
      tokens: choice.logprobs?.content.length ?? 0,
      cut: choice.finish_reason === "length",
    };
  }
}

chat({ open, answer });
