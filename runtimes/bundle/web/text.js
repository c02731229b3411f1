// Text to ids, by the tokenizer.json and the chat template in the artifact, as runtimes/text/tokenizer.py does it.
//
// A control token (<|end|>, <s>, ...) is read as one only where the chat template wrote it: in the tokenizer these have
// random names, which the template's own text alone is given. In a message the same characters are plain text.
import { Template } from "./lib/huggingface-jinja/index.js";
import { Tokenizer as Library } from "./lib/huggingface-tokenizers/tokenizers.min.js";
import { RequestError } from "./loop.js";
import { TokenBytes } from "./stream.js";

const NAMED = ["bos_token", "eos_token", "unk_token", "pad_token"];
const OPEN = "\ue000", CLOSE = "\ue001"; // around a message's number, or a secret name

export class Tokenizer {
  #private = new Map(); #control; #library; #explicit; #bos; #template; #names = {};

  // `content` is tokenizer.json, `config` tokenizer_config.json, `template` chat_template.jinja or null.
  constructor(content, config, template) {
    const control = controlNames(content);
    this.bytes = new TokenBytes(content, control, hiddenNames(content, config));
    for (const name of NAMED) {
      const text = config[name]?.content ?? config[name];
      if (typeof text === "string") this.#names[name] = text;
    }
    const secret = crypto.randomUUID();
    control.forEach((name, place) => this.#private.set(name, `${OPEN}${secret}:${place}${CLOSE}`));
    this.#control = control.length
      ? new RegExp([...control].sort((one, other) => other.length - one.length).map(RegExp.escape ?? escape).join("|"), "g")
      : null;
    this.#library = new Library(renamed(content, this.#private), withoutNames(config));
    this.#explicit = "add_bos_token" in config || "add_eos_token" in config;
    const bos = this.#names.bos_token;
    const id = config.add_bos_token ? content.added_tokens.find((token) => token.content === bos)?.id : undefined;
    this.#bos = id === undefined ? [] : [id];
    const source = template ?? defaultTemplate(config.chat_template);
    this.#template = source === null ? null : new Template(source);
  }

  get hasTemplate() {
    return this.#template !== null;
  }

  // The ids of a plain text, with the begin token where the artifact's config asks for one.
  encodePrompt(text) {
    checkText("prompt", text);
    return [...this.#bos, ...this.#library.encode(text, { add_special_tokens: !this.#explicit }).ids];
  }

  // The ids of a conversation put through the chat template, ready for the assistant's turn.
  encodeChat(messages) {
    if (!this.#template) throw new RequestError("this artifact has no chat template; give prompt or token_ids");
    for (const { content } of messages) checkText("a message", content);
    const plain = this.#render(messages);
    for (const trim of [(text) => text, (text) => text.trim()]) { // a template may trim contents
      const contents = messages.map(({ content }) => trim(content));
      const marked = this.#render(messages.map((message, place) => (
        { ...message, content: contents[place] && `${OPEN}${place}${CLOSE}` }
      )));
      const pieces = marked.split(new RegExp(`${OPEN}([0-9]+)${CLOSE}`));
      if (pieces.map((piece, place) => (place % 2 ? contents[piece] : piece)).join("") !== plain) continue;
      if (contents.some((content, place) => content && !marked.includes(`${OPEN}${place}${CLOSE}`))) {
        throw new RequestError("this artifact's chat template drops a message; put its text into a user message");
      }
      const text = pieces.map((piece, place) => (place % 2 ? contents[piece] : this.#open(piece))).join("");
      return this.#library.encode(text, { add_special_tokens: false }).ids;
    }
    throw new RequestError("this artifact's chat template rewrites messages; give prompt or token_ids");
  }

  #render(messages) {
    try {
      return this.#template.render({ messages, add_generation_prompt: true, tools: null, ...this.#names });
    } catch (error) {
      throw new RequestError(`the artifact's chat template refuses these messages: ${error.message}`);
    }
  }

  // The template's own text, with the control tokens in it spelt by their private names.
  #open(text) {
    return this.#control ? text.replace(this.#control, (name) => this.#private.get(name)) : text;
  }
}

// The special tokens, and those marked as plain but written as markup.
function controlNames(content) {
  return (content.added_tokens ?? [])
    .filter((token) => token.special || /^(<\S+>|\[[A-Z_/]+\])$/.test(token.content))
    .map((token) => token.content);
}

// The tokens that have no text when they are written: special by either of the two files.
function hiddenNames(content, config) {
  const added = (content.added_tokens ?? []).filter((token) => token.special);
  const table = Object.values(config.added_tokens_decoder ?? {}).filter((token) => token.special);
  return new Set([...added, ...table].map((token) => token.content));
}

function renamed(content, names) {
  const rename = (name) => names.get(name) ?? name;
  const { model } = content, { vocab } = model;
  const renamedVocab = Array.isArray(vocab)
    ? vocab.map(([name, score]) => [rename(name), score])
    : Object.fromEntries(Object.entries(vocab).map(([name, id]) => [rename(name), id]));
  return {
    ...content,
    added_tokens: (content.added_tokens ?? []).map((token) => ({ ...token, content: rename(token.content) })),
    model: { ...model, vocab: renamedVocab, unk_token: model.unk_token && rename(model.unk_token) },
    truncation: null,
    padding: null,
  };
}

// The library looks the config's own names up, which are other ones now.
function withoutNames(config) {
  return Object.fromEntries(Object.entries(config).filter(([key]) => !key.endsWith("_token") && !key.includes("tokens")));
}

// The older form is a list of templates by name.
function defaultTemplate(source) {
  if (Array.isArray(source)) source = source.find((entry) => entry.name === "default")?.template;
  return source ?? null;
}

function checkText(where, text) {
  if (typeof text !== "string" || !text.isWellFormed()) throw new RequestError(`${where} is not valid Unicode text`);
}

function escape(text) {
  return text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");
}
