// The generation loop: prefill, sample, forward, again. Token ids only, as runtimes/loop/loop.py does it.
//
// It owns what an engine does not know: the KV cache's contents, sessions, the long-rope switch, deadlines, cancelling.
import { penalised, sample } from "./sampling.js";

export class RequestError extends Error {}

export class TokenLoop {
  #engine; #cached = []; #cachedLong = false; #session = null; #running = false; #cancelled = false;

  constructor(engine) {
    this.#engine = engine;
  }

  // End the request that runs now, within one token or one piece of its prefill.
  cancel() {
    this.#cancelled = true;
  }

  // {id, at_s} for each new token, then {finish, stop_id, usage, prefill_s, total_s, error}. `accepted` is the
  // performance.now() that times count from. Ending the iteration cancels. A RequestError comes from the call.
  stream(request, accepted = performance.now()) {
    this.#check(request);
    if (!this.#running) this.#cancelled = false;
    return this.#exclusively(request, accepted);
  }

  #check({ ids, stop_ids, max_new_tokens }) {
    const { contextTokens, vocabSize } = this.#engine;
    if (ids.length === 0) throw new RequestError("the prompt has no tokens; give at least one");
    if (ids.length >= contextTokens) {
      throw new RequestError(
        `the prompt has ${ids.length} tokens; a context of ${contextTokens} takes at most ${contextTokens - 1} and ` +
        "one new one; shorten the prompt, or export with a longer --context",
      );
    }
    for (const id of [...ids, ...stop_ids]) {
      if (!Number.isInteger(id) || id < 0 || id >= vocabSize) {
        throw new RequestError(`token id ${id} is not in the model's vocabulary; allowed: 0 to ${vocabSize - 1}`);
      }
    }
    if (!Number.isInteger(max_new_tokens) || max_new_tokens < 1) {
      throw new RequestError(`max_new_tokens is ${max_new_tokens}; allowed: 1 or more`);
    }
  }

  async *#exclusively(request, accepted) {
    if (this.#running) throw new RequestError("another request is running; read it to its end or close it first");
    this.#running = true;
    try {
      yield* this.#generate(request, accepted);
    } finally {
      this.#running = this.#cancelled = false;
    }
  }

  async *#generate(request, accepted) {
    const seconds = () => (performance.now() - accepted) / 1000;
    const ended = () => {
      if (this.#cancelled) return "cancelled";
      return request.deadline_s !== null && seconds() >= request.deadline_s ? "deadline" : null;
    };
    const ids = [...request.ids], seen = new Set(ids), counts = new Map();
    const reused = this.#reusable(request), room = Math.min(request.max_new_tokens, this.#engine.contextTokens - ids.length);
    let completion = 0, prefilled = 0, prefill_s = null, stop_id = null, error = null, finish = ended();
    try {
      while (finish === null) {
        const began = seconds();
        const logits = await this.#next(ids, completion === 0 ? reused : this.#cached.length, completion === 0, ended);
        if (completion === 0) {
          prefill_s = logits === null ? null : seconds() - began;
          prefilled = this.#cached.length - reused;
        }
        if (logits === null) {
          finish = ended();
          break;
        }
        const id = sample(penalised(logits, request.sampling, seen, counts), request.sampling, completion);
        const at_s = seconds();
        if (request.stop_ids.includes(id)) {
          [finish, stop_id] = ["stop", id];
          break;
        }
        completion += 1;
        yield { id, at_s };
        ids.push(id);
        seen.add(id);
        counts.set(id, (counts.get(id) ?? 0) + 1);
        finish = ended() ?? (completion >= room ? "length" : null);
      }
    } catch (failure) {
      this.#cached = []; // what the cache contains now is unknown
      [finish, error] = ["error", failure.message];
    }
    const usage = { prompt: request.ids.length, reused, prefilled, completion };
    yield { finish, stop_id, usage, prefill_s, total_s: seconds(), error };
  }

  // Trim the cache to what this request may keep of it. -> how many tokens that is.
  #reusable({ ids, session }) {
    const same = session !== null && session === this.#session;
    if (!same || this.#engine.isLong(ids.length) !== this.#cachedLong) this.#cached = [];
    this.#session = session;
    let keep = 0; // the last prompt token is always computed: its logits are needed
    while (keep < Math.min(this.#cached.length, ids.length - 1) && this.#cached[keep] === ids[keep]) keep += 1;
    this.#cached.length = keep;
    return keep;
  }

  // The logits after all ids, of which those from `start` on are not cached; null when cancelled or past the deadline.
  async #next(ids, start, first, ended) {
    const long = this.#engine.isLong(ids.length);
    if (!first && long !== this.#cachedLong) start = 0; // the switch: all is computed again, with the long factors
    this.#cachedLong = long;
    let logits = null;
    while (start < ids.length) {
      if (logits !== null && ended()) return null;
      const end = Math.min(start + this.#engine.pieceTokens, ids.length);
      this.#cached.length = start; // until the engine is back, what is cached beyond is unknown
      logits = await this.#engine.forward(ids.slice(start, end), start, long);
      this.#cached.push(...ids.slice(start, end));
      start = end;
    }
    return logits;
  }
}
