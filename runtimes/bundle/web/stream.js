// From ids to the text that is shown, piece by piece: whole characters, and never a part of a stop string. As
// runtimes/text/stream.py and token_bytes.py do it.

const encoder = new TextEncoder();

// The bytes that each id stands for; `hidden` are the tokens without a text, `control` those that only a template writes.
export class TokenBytes {
  #table = []; #control = new Set();

  constructor(content, control, hidden) {
    const [toBytes, leadingSpace] = decoderOf(content.decoder);
    this.leadingSpace = leadingSpace;
    const { vocab } = content.model;
    const names = Array.isArray(vocab) ? vocab.map(([name], id) => [name, id]) : Object.entries(vocab);
    for (const [name, id] of names) this.#table[id] = hidden.has(name) ? new Uint8Array() : toBytes(name);
    for (const { id, content: name } of content.added_tokens ?? []) {
      this.#table[id] = hidden.has(name) ? new Uint8Array() : encoder.encode(name);
      if (control.includes(name)) this.#control.add(id);
    }
  }

  // A model's vocabulary may be padded beyond the tokenizer's: such ids have no text.
  of(id) {
    return this.#table[id] ?? new Uint8Array();
  }

  isControl(id) {
    return this.#control.has(id);
  }
}

// Joins the tokens' bytes into characters. `prompt` decides about a first space: after a control token it is the
// tokenizer's own.
export class TextJoiner {
  #table; #utf8 = new TextDecoder("utf-8", { ignoreBOM: true }); #dropSpace;

  constructor(table, prompt) {
    this.#table = table;
    this.#dropSpace = table.leadingSpace && (prompt.length === 0 || table.isControl(prompt.at(-1)));
  }

  add(id) {
    let bytes = this.#table.of(id);
    if (bytes.length && this.#dropSpace) {
      this.#dropSpace = false;
      if (bytes[0] === 0x20) bytes = bytes.subarray(1);
    }
    return this.#utf8.decode(bytes, { stream: true });
  }
}

// Holds back text that may be the beginning of a stop string. The one that is complete first wins, among those that end
// together the longest.
export class StopScanner {
  #stops; #held = "";

  constructor(stops) {
    this.#stops = [...new Set(stops)].sort((one, other) => other.length - one.length);
  }

  // -> {text, stop}: text that cannot be part of a stop string any more, and the stop string that ended it, or null.
  add(text) {
    text = this.#held + text;
    let found = null;
    for (const stop of this.#stops) {
      const start = text.indexOf(stop);
      if (start >= 0 && (found === null || start + stop.length < found.end)) found = { end: start + stop.length, stop };
    }
    if (found) {
      this.#held = "";
      return { text: text.slice(0, found.end - found.stop.length), stop: found.stop };
    }
    const keep = this.#possible(text);
    this.#held = text.slice(text.length - keep);
    return { text: text.slice(0, text.length - keep), stop: null };
  }

  // What was held back for a stop string that did not come.
  rest() {
    const held = this.#held;
    this.#held = "";
    return held;
  }

  #possible(text) {
    for (let length = Math.min(text.length, (this.#stops[0]?.length ?? 0) - 1); length > 0; length--) {
      const end = text.slice(text.length - length);
      if (this.#stops.some((stop) => stop.startsWith(end))) return length;
    }
    return 0;
  }
}

// How a token's name becomes bytes, and whether a text's first space is the tokenizer's own.
function decoderOf(decoder) {
  const steps = (decoder?.decoders ?? [decoder]).map((step) => step?.type).join(" ");
  if (steps === "ByteLevel") return [byteLevel(), false];
  if (steps === "Metaspace") return [metaspace, (decoder.prepend_scheme ?? "always") !== "never"];
  if (/^Replace ByteFallback Fuse( Strip)?$/.test(steps)) return [metaspace, steps.endsWith("Strip")];
  throw new Error(`tokenizer.json has the decoder ${steps}, which is not known here`);
}

function metaspace(name) {
  const byte = /^<0x([0-9A-F]{2})>$/.exec(name);
  return byte ? Uint8Array.of(parseInt(byte[1], 16)) : encoder.encode(name.replaceAll("\u2581", " "));
}

// GPT-2's table: printable bytes are their own Latin-1 character, the others follow from U+0100 on.
function byteLevel() {
  const printable = (byte) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte < 0x100 && byte !== 0xad);
  const bytes = new Map();
  let next = 0x100;
  for (let byte = 0; byte < 256; byte++) bytes.set(String.fromCharCode(printable(byte) ? byte : next++), byte);
  return (name) => {
    const found = [...name].map((character) => bytes.get(character));
    return found.includes(undefined) ? encoder.encode(name) : Uint8Array.from(found);
  };
}
