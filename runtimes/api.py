"""The generate interface: one request, one stream of events, the same on every target.

A runtime that does not support a field of the request raises UnsupportedError; it never ignores one.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Finish = Literal["stop", "eos", "length", "cancelled", "deadline", "error"]
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """A tool that the model wants to be called. `arguments` are named by the tool's JSON schema."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None  # to tell which result belongs to which call; the model does not see it


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. The content of role "tool" is what a call gave."""

    role: Role
    content: str = ""
    tool_calls: Sequence[ToolCall] = ()  # of the assistant
    tool_call_id: str | None = None  # role "tool": the id of the call that this answers


# A message may also be a mapping with the same keys, or with OpenAI's (runtimes.text.messages).
AnyMessage = Message | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What to generate. Exactly one of prompt, messages, token_ids. Greedy unless temperature is above 0.

    From the logits to a token, as in transformers: penalties, temperature, top_k, top_p, min_p, the draw.
    """

    prompt: str | None = None  # text as it is: special tokens in it stay text
    messages: Sequence[AnyMessage] | None = None  # put through the artifact's chat template
    # What the model may call, each as OpenAI's {"type": "function", "function": {"name", "description", "parameters"}};
    # `parameters` is a JSON schema. The chat template tells the model about them.
    tools: Sequence[Mapping[str, Any]] = ()
    # "auto": the model decides; "required": the answer is a call; or the name of the tool that the answer calls.
    tool_choice: str = "auto"
    continue_last: bool = False  # the last message is the beginning of the answer, not a turn that has ended
    token_ids: Sequence[int] | None = None
    max_new_tokens: int = 256  # 1 or more; the end of the context may come first
    temperature: float = 0.0  # logits are divided by it; 0 takes the likeliest token
    top_k: int | None = None  # draw from so many of the likeliest tokens; None: from all
    top_p: float | None = None  # draw from the likeliest that together have this probability, above 0 to 1; None: all
    min_p: float | None = None  # drop tokens less likely than this share of the likeliest one, 0 to 1; None: none
    # Divides the positive logits, and multiplies the negative ones, of ids in the prompt or the answer. 0.01 to 100.
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0  # subtracted from the logits of ids in the answer, -2 to 2
    frequency_penalty: float = 0.0  # subtracted once for each time that the id is in the answer, -2 to 2
    seed: int | None = None  # 0 to 2**64 - 1; None draws one
    # The answer matches it: at most one of the three. It ends where the document is complete. Needs llguidance.
    json_schema: Mapping[str, Any] | None = None
    regex: str | None = None  # of Rust's kind, without look-around
    lark: str | None = None  # a Lark grammar in llguidance's dialect
    # Report each token's log-probability, and this many of the likeliest ids, 0 to 20, with theirs; None: nothing.
    logprobs: int | None = None
    stop: Sequence[str] = ()  # texts that end the answer; they are not part of it
    stop_ids: Sequence[int] = ()  # besides the artifact's own
    ignore_stop_ids: bool = False  # generate exactly max_new_tokens: for benchmarks
    deadline_s: float | None = None  # from the acceptance of the request
    adapter: str | None = None  # a LoRA adapter that was exported with --side-adapter, by its name; None: none of them
    session: str | None = None  # reuse the KV cache of the longest common prefix of this session's last request
    # Guess what repeats the prompt or the answer, and check several tokens in one forward where that pays. Tokens are
    # chosen as without it; but several in one forward round differently from one, so a near tie may fall otherwise.
    speculate: bool = False


@dataclass(frozen=True)
class Alternative:
    """An id that the model might have chosen, and its log-probability."""

    id: int
    text: str  # of this token alone: bytes that are no whole character are shown as U+FFFD
    logprob: float


@dataclass(frozen=True)
class TokenEvent:
    """One token. `text` may be empty while a character or a possible stop string is incomplete."""

    id: int
    text: str
    # Since the request was accepted, on the clock of the process that has loaded the model; None: unknown.
    at_s: float | None
    # Natural logarithms of the model's own probabilities, before penalties and temperature. None: not asked for.
    logprob: float | None = None
    top_logprobs: tuple[Alternative, ...] = ()  # the likeliest ids, likeliest first, whether chosen or not


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Token counts: prompt = reused (already in the KV cache) + prefilled, unless it ended before the first token.
    completion counts the token events; an id that ended the answer is not one. proposed were guessed (`speculate`),
    and accepted of them were right."""

    prompt: int
    reused: int
    prefilled: int
    completion: int
    proposed: int = 0
    accepted: int = 0


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds; None: unknown. The first token's at_s is the time to first token."""

    prefill_s: float | None  # how long the prompt took to its first logits: no tokenising, no sampling
    total_s: float | None  # from the acceptance of the request to its end


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Memory of the process that has loaded the model, in bytes; None where the system does not report it.

    Every layer passes it on whole, from the process to the measurement's file. To add a figure, change this class, the
    code that reads it from the system, and the metric that uses it.
    """

    peak_bytes: int | None = None  # max(VmHWM, max over samples of VmRSS + VmSwap); Windows: PeakWorkingSetSize
    anonymous_bytes: int | None = None
    file_bytes: int | None = None
    swap_bytes: int | None = None
    # Windows only. Never added to the above: a GPU may share the host's memory.
    committed_bytes: int | None = None  # PeakPagefileUsage: what was paged out is in it, mapped files are not
    gpu_bytes: int | None = None  # the graphics adapters' own memory, at its highest sample
    gpu_shared_bytes: int | None = None  # the host's memory that they use, at its highest sample


@dataclass(frozen=True, kw_only=True)
class DoneEvent:
    """The last event of every stream."""

    finish: Finish
    text: str = ""  # what was held back for a stop string that did not come: the last piece of the answer
    stop_string: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()  # what the answer's text asks for, where the request has tools
    usage: Usage
    timings: Timings
    memory: MemoryUse | None = None
    error: str | None = None


Event = TokenEvent | DoneEvent


class Runtime(Protocol):
    """An opened artifact. It serves one request at a time."""

    @property
    def has_template(self) -> bool:
        """Whether `messages` can be given: the artifact has a chat template."""
        ...

    def generate(self, request: GenerateRequest) -> Generator[Event, None, None]:
        """Token events, then one DoneEvent. The request is accepted, checked and tokenised at the call.

        Closing the iterator cancels within one token (or one piece of the prefill), and the runtime takes the next
        request. Raises RequestError at the call for a request that cannot be served.
        """
        ...

    def close(self) -> None:
        """Free the model. The runtime cannot be used afterwards."""
        ...
