// A chat with the server that this page came from: it streams, can be stopped, and shows tokens per second.
"use strict";

const element = (id) => document.getElementById(id);
let messages = [];
let model = "";
let key = "";
let running = null; // aborts the answer that is being read

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

function show(role, text) {
  const turn = document.createElement("div");
  turn.className = `turn ${role}`;
  turn.textContent = text;
  element("turns").append(turn);
  turn.scrollIntoView({ block: "end" });
  return turn;
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

async function answer() {
  const turn = show("assistant", "");
  const began = performance.now();
  let first = null, text = "", tokens = 0;
  running = new AbortController();
  element("stop").hidden = false;
  element("send").hidden = true;
  element("state").textContent = "waiting for the first token";
  const report = (end) => {
    const seconds = first === null ? 0 : (performance.now() - first) / 1000;
    const rate = seconds > 0 && tokens > 1 ? `, ${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    const start = first === null ? "" : `, first after ${((first - began) / 1000).toFixed(2)} s`;
    element("state").textContent = `${tokens} tokens${start}${rate}${end}`;
  };
  try {
    const body = { model, messages, stream: true, stream_options: { include_usage: true }, logprobs: true };
    const response = await call("v1/chat/completions", {
      method: "POST", body: JSON.stringify(body), signal: running.signal,
    });
    for await (const object of objects(response)) {
      if (object.error) throw new Error(object.error.message);
      const choice = object.choices[0];
      if (choice?.logprobs) {
        first ??= performance.now();
        tokens += choice.logprobs.content.length;
        report("");
      }
      if (choice?.delta?.content) {
        text += choice.delta.content;
        turn.textContent = text;
        turn.scrollIntoView({ block: "end" });
      }
      if (choice?.finish_reason === "length") report(", cut at the end of the context");
    }
  } catch (error) {
    if (error.name === "AbortError") report(", stopped");
    else {
      turn.classList.add("error");
      turn.textContent = text + (text ? "\n" : "") + error.message;
      element("state").textContent = "";
      if (!text) messages.pop();
    }
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
  if (!text || running || !model) return;
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
call("v1/models").then((response) => response.json()).then((list) => {
  model = list.data[0].id;
  element("model").textContent = `${model}, context ${list.data[0].context_tokens} tokens`;
}).catch((error) => { element("model").textContent = error.message; });
