// A chat with the model in this browser: it streams, can be stopped, and shows tokens per second.
import { openRuntime } from "./phi-edge.js";

const element = (id) => document.getElementById(id);
let messages = [];
let runtime = null;
let running = null; // aborts the answer that is being read

function show(role, text) {
  const turn = document.createElement("div");
  turn.className = `turn ${role}`;
  turn.textContent = text;
  element("turns").append(turn);
  turn.scrollIntoView({ block: "end" });
  return turn;
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

function showProgress({ file, loaded, total, cached }) {
  element("progress").hidden = false;
  element("progress").value = loaded / total;
  const from = cached ? "from this browser's cache" : "downloaded";
  element("state").textContent = `${megabytes(loaded)} of ${megabytes(total)}: ${file} ${from}`;
}

async function open() {
  try {
    runtime = await openRuntime({ onProgress: showProgress });
    const { source, context_tokens } = runtime.manifest;
    element("model").textContent = `${source.name}, context ${context_tokens} tokens, on ${runtime.accelerator}`;
    element("state").textContent = "";
    element("send").disabled = false;
  } catch (error) {
    show("error", error.message);
    element("state").textContent = "";
  } finally {
    element("progress").hidden = true;
  }
}

async function answer() {
  const turn = show("assistant", "");
  let first = null, last = null, text = "", tokens = 0;
  running = new AbortController();
  element("stop").hidden = false;
  element("send").hidden = true;
  element("state").textContent = "waiting for the first token";
  const report = (end) => {
    const rate = last > first && tokens > 1 ? `, ${((tokens - 1) / (last - first)).toFixed(1)} tokens/s` : "";
    const start = first === null ? "" : `, first after ${first.toFixed(2)} s`;
    element("state").textContent = `${tokens} tokens${start}${rate}${end}`;
  };
  try {
    const request = { messages, max_new_tokens: runtime.manifest.context_tokens, session: "page", signal: running.signal };
    for await (const event of runtime.generate(request)) {
      if (event.type === "token") {
        tokens += 1;
        first ??= event.at_s;
        last = event.at_s;
        report("");
      }
      text += event.text;
      turn.textContent = text;
      turn.scrollIntoView({ block: "end" });
      if (event.finish === "error") throw new Error(event.error);
      if (event.finish === "length") report(", cut at the end of the context");
      if (event.finish === "cancelled") report(", stopped");
    }
  } catch (error) {
    turn.classList.add("error");
    turn.textContent = text + (text ? "\n" : "") + error.message;
    element("state").textContent = "";
    if (!text) messages.pop();
  } finally {
    if (text) messages.push({ role: "assistant", content: text });
    running = null;
    element("stop").hidden = true;
    element("send").hidden = false;
    element("text").focus();
  }
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = element("text").value.trim();
  if (!text || running || !runtime) return;
  element("text").value = "";
  messages.push({ role: "user", content: text });
  show("user", text);
  answer();
});
element("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    element("form").requestSubmit();
  }
});
element("stop").addEventListener("click", () => running?.abort());
element("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  element("turns").replaceChildren();
  element("state").textContent = "";
});
open();
