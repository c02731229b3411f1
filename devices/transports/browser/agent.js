// The agent protocol (docs/agent-protocol.md) in a page: phiEdgeRead(line) takes a line of the host, and lines go to it
// by phiEdgeWrite(line), both of which __main__.py connects with its stdin and stdout.
import { RequestError, TokenLoop } from "./loop.js";
import { openEngine } from "./phi-edge.js";

const SAMPLING = {
  temperature: 0, top_k: null, top_p: null, min_p: null,
  repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0, seed: 0n,
};
const DEFAULTS = { stop_ids: [], deadline_s: null, session: null, hold: false, ...SAMPLING };
const UNSUPPORTED = ["adapter", "grammar", "logprobs"];
const CAPABILITIES = [...Object.keys(SAMPLING).filter((name) => name !== "seed"), "session", "deadline_s", "hold", "cancel"];
const KNOWN = ["do", "request", "ids", "max_new_tokens", ...Object.keys(DEFAULTS), ...UNSUPPORTED];

const began = performance.now();
const seconds = () => (performance.now() - began) / 1000;
const write = (message) => globalThis.phiEdgeWrite(JSON.stringify(message));
const fail = (request, code, message, fatal = false) => write({ event: "error", request, code, message, fatal });
let current = null; // the number of the request that is accepted and not finished
let cancelled = false; // before it has begun
let loop = null;
const loading = load();

async function load() {
  try {
    const { manifest, engine } = await openEngine([new URL("model/", location.href)]);
    loop = new TokenLoop(engine);
    write({
      event: "ready", protocol: 1, agent: "phi-edge browser", format: manifest.format,
      context_tokens: engine.contextTokens, vocab_size: engine.vocabSize, capabilities: CAPABILITIES,
      versions: { ...engine.versions, browser: navigator.userAgent }, open_s: seconds(),
      accelerator: `${engine.accelerator}, ${engine.activations}`,
    });
  } catch (error) {
    fail(null, "engine", error.message, true);
  }
}

globalThis.phiEdgeRead = (line) => {
  // A seed has 64 bits, more than a number of JSON has here.
  const seed = /"seed": ?(\d+)/.exec(line)?.[1];
  const command = JSON.parse(line);
  const { do: verb, request: number } = command;
  if (verb === "ping") write({ event: "pong", request: number, uptime_s: seconds() });
  else if (verb === "cancel") cancel(number);
  else if (verb !== "generate") fail(number, "malformed", `do is ${verb}; known: generate, cancel, ping`);
  else generate({ ...command, seed: BigInt(seed ?? 0) });
};

function cancel(number) {
  if (number !== current) return;
  cancelled = true;
  loop?.cancel();
}

async function generate(command) {
  const number = command.request;
  const unknown = Object.keys(command).find((name) => !KNOWN.includes(name));
  if (unknown) return fail(number, "request", `unknown key ${unknown} in generate; known: ${KNOWN.join(", ")}`);
  const unsupported = UNSUPPORTED.find((name) => (command[name] ?? null) !== null);
  if (unsupported) return fail(number, "unsupported", `${unsupported} is not supported in a browser; leave it out`);
  if (current !== null) return fail(number, "busy", `request ${current} is running; cancel it or wait for its end`);
  [current, cancelled] = [number, false];
  const accepted = performance.now();
  const field = (name) => command[name] ?? DEFAULTS[name] ?? null;
  const sampling = Object.fromEntries(Object.keys(SAMPLING).map((name) => [name, field(name)]));
  const held = [];
  const send = field("hold") ? (line) => held.push(line) : write;
  try {
    await loading;
    const { ids, max_new_tokens } = command;
    const [stop_ids, deadline_s, session] = ["stop_ids", "deadline_s", "session"].map(field);
    const records = loop.stream({ ids, max_new_tokens, stop_ids, deadline_s, session, sampling }, accepted);
    if (cancelled) loop.cancel();
    for await (const record of records) {
      if (record.finish === undefined) {
        send({ event: "token", request: number, ...record });
        continue;
      }
      current = null;
      held.forEach(write);
      write({ event: "done", request: number, ...record, memory: null });
    }
  } catch (error) {
    current = null;
    fail(number, error instanceof RequestError ? "request" : "internal", error.message);
  }
}
