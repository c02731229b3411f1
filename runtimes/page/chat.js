// The chat page, whatever its answers come from. The page.js beside it says that, and calls `chat` with
//
//   open(progress)            prepares it; the line beside the title. progress(share, text) shows how far it is.
//   answer(messages, signal)  an answer's pieces, {text, tokens, cut}, until it ends or `signal` stops it: the text, of how
//                             many tokens it is, and whether the end of the context cut the answer here.
//
// Either may throw; the page shows the message.
const element = (id) => document.getElementById(id);

export async function chat(source) {
  let messages = [];
  let running = null; // stops the answer that is being read
  let ready = false;

  async function answer() {
    const conversation = messages; // a new one may begin before this answer ends
    const turn = show("assistant", "");
    const speed = new Speed();
    const controller = running = new AbortController();
    let text = "", cut = false, failure = null;
    setRunning(true);
    state("waiting for the first token");
    try {
      for await (const piece of source.answer(conversation, controller.signal)) {
        speed.count(piece.tokens);
        text += piece.text;
        cut ||= piece.cut;
        turn.textContent = text;
        turn.scrollIntoView({ block: "end" });
        state(String(speed));
      }
    } catch (error) {
      if (!controller.signal.aborted) failure = error;
    }
    running = null;
    setRunning(false);
    // Two turns of the user in a row are refused by many chat templates.
    if (text) conversation.push({ role: "assistant", content: text });
    else conversation.pop();
    if (failure) {
      turn.classList.add("error");
      turn.textContent = text + (text ? "\n" : "") + failure.message;
    }
    const end = controller.signal.aborted ? ", stopped" : cut ? ", cut at the end of the context" : "";
    state(failure || conversation !== messages ? "" : `${speed}${end}`);
  }

  element("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = element("text").value.trim();
    if (!text || running || !ready) return;
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
    state("");
  });

  try {
    element("model").textContent = await source.open(progress);
    element("send").disabled = false;
    ready = true;
  } catch (error) {
    show("error", error.message);
  } finally {
    element("progress").hidden = true;
    state("");
  }
}

// How many tokens came, when the first of them, and how many a second since.
class Speed {
  #began = performance.now();
  #first = null; #last = null; #tokens = 0;

  count(tokens) {
    if (tokens === 0) return;
    this.#tokens += tokens;
    this.#last = performance.now();
    this.#first ??= this.#last;
  }

  toString() {
    const seconds = (this.#last - this.#first) / 1000;
    const rate = seconds > 0 && this.#tokens > 1 ? `, ${((this.#tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    const start = this.#first === null ? "" : `, first after ${((this.#first - this.#began) / 1000).toFixed(2)} s`;
    return `${this.#tokens} tokens${start}${rate}`;
  }
}

function show(role, text) {
  const turn = document.createElement("div");
  turn.className = `turn ${role}`;
  turn.textContent = text;
  element("turns").append(turn);
  turn.scrollIntoView({ block: "end" });
  return turn;
}

function state(text) {
  element("state").textContent = text;
}

function progress(share, text) {
  element("progress").hidden = false;
  element("progress").value = share;
  state(text);
}

function setRunning(running) {
  element("stop").hidden = !running;
  element("send").hidden = running;
  if (!running) element("text").focus();
}
