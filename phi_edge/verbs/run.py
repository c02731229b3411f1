"""`phi-edge run`: one answer on stdout, as text or as JSON lines, or a conversation on a terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.artifact import MANIFEST, open_artifact
from phi_edge.files import Folder
from phi_edge.lab import DeviceName, lab_option, wait_option
from phi_edge.terminal import echo, echo_answer
from phi_edge.verb import Seconds, Text, Verb
from runtimes.api import DoneEvent, GenerateRequest, Message, Runtime, TokenEvent
from runtimes.engines.engine import ANY_ADAPTER, Graphics
from runtimes.errors import EngineError, RequestError
from runtimes.intact import check_intact
from runtimes.registry import open_runtime
from runtimes.terminal import typed_text
from runtimes.text.chat import chat

if TYPE_CHECKING:
    from devices.drivers.cloud.driver import CloudDriver

# Fields of events that no option of this verb asks for.
NOT_ASKED = ("logprob", "top_logprobs", "tool_calls")
MOST_PROMPT_BYTES = 1 << 26  # no context is as long


@click.command(
    "run",
    cls=Verb,
    examples=[
        'phi-edge run my-artifact "Why is the sky blue?"',
        "phi-edge run my-artifact",
        'echo "Once upon a time" | phi-edge run my-artifact - --raw --temperature 0.8 --seed 7 --json',
        'phi-edge run my-artifact "Why is the sky blue?" --device pi5',
        'phi-edge run "Why is the sky blue?" --device claude',
    ],
    too_many=lambda given, rest: f"put the prompt in quotes: {_quoted(given, rest)}",
    groups={
        "Prompt": ("as_chat", "system"),
        "Answer": (
            "max_new_tokens",
            "temperature",
            "top_k",
            "top_p",
            "seed",
            "stop",
            "deadline",
            "lora",
            "speculate",
            "as_json",
        ),
        "Where": ("threads", "device", "lab", "wait_s", "adapter", "allow_cpu"),
    },
)
@click.argument("artifact", type=Folder(path_type=str))
@click.argument("prompt", type=Text(), required=False)
@click.option("--chat/--raw", "as_chat", default=None, show_default="--chat, if the artifact has a chat template",
              help="Treat PROMPT as a chat message, by the chat template, or continue it as it is.")  # fmt: skip
@click.option("--system", type=Text(), metavar="TEXT", show_default="none",
              help="In a chat: a system message before the first one.")  # fmt: skip
@click.option("--max-new-tokens", type=int, default=256, metavar="N", help="End the answer after N tokens.")
@click.option("--temperature", type=float, default=0.0, metavar="T",
              help="0 always takes the likeliest token; higher is more varied.")  # fmt: skip
@click.option("--top-k", type=int, metavar="K", show_default="all tokens",
              help="Draw from the K likeliest tokens only.")  # fmt: skip
@click.option("--top-p", type=float, metavar="P", show_default="all tokens",
              help="Draw from the likeliest tokens that together have probability P.")  # fmt: skip
@click.option("--seed", type=int, metavar="S", show_default="a random one",
              help="The same seed gives the same text, on every target.")  # fmt: skip
@click.option("--stop", type=Text(), multiple=True, metavar="TEXT", show_default="the model's own stop tokens only",
              help="End the answer before this text. May be repeated.")  # fmt: skip
@click.option("--deadline", type=Seconds(), metavar="SECONDS", show_default="none",
              help="End the answer after this time.")  # fmt: skip
@click.option("--lora", metavar="NAME", show_default="none",
              help="Answer with this LoRA adapter: one that was exported with --side-adapter.")  # fmt: skip
@click.option("--speculate", is_flag=True,
              help="Guess what repeats the prompt, and check several tokens at once: faster if right.")  # fmt: skip
@click.option("--threads", type=int, metavar="N", help="Threads of the engine.",
              show_default="all cores that the process may use; with --device, what the lab file says")  # fmt: skip
@click.option("--device", type=DeviceName(), help="A device of the lab file.", show_default="this process")
@lab_option
@wait_option
@click.option("--adapter", metavar="WHICH", show_default="the one with most memory",
              help="DirectML, WebGPU, CUDA: an adapter's number, LUID (DirectML) or part of its name.")  # fmt: skip
@click.option("--allow-cpu", is_flag=True,
              help="DirectML, WebGPU, CUDA: run on the CPU if there is no graphics adapter.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each token, and a last one.")
def run_command(
    artifact: str,
    prompt: str | None,
    as_chat: bool | None,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    threads: int | None,
    deadline: float | None,
    lora: str | None,
    speculate: bool,
    device: str | None,
    lab: Path | None,
    wait_s: float,
    adapter: str | None,
    allow_cpu: bool,
    as_json: bool,
) -> None:
    """Generate text with ARTIFACT, a folder that `phi-edge export` wrote.

    PROMPT is a question to a model with a chat template, and the beginning of a text for any other; - reads it from
    stdin. Without PROMPT, a conversation starts on the terminal. The answer goes to stdout, a line with times and
    memory to stderr. A device that is a service (docs/lab.md) takes no ARTIFACT, only PROMPT.
    """
    template = GenerateRequest(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
        deadline_s=deadline,
        adapter=lora,
        speculate=speculate,
    )
    opening = [] if system is None else [Message("system", system)]
    if device is not None and (service := _service(device, lab)) is not None:
        if prompt is not None or as_chat is False or (threads, adapter, allow_cpu) != (None, None, False):
            raise RequestError(
                f"device {device} is a service: give the prompt alone, in quotes, without ARTIFACT, --raw, --threads, "
                "--adapter and --allow-cpu"
            )
        with contextlib.closing(service.open_runtime()) as answering:
            question = Message("user", _read_stdin() if artifact == "-" else _typed(artifact))
            request = dataclasses.replace(template, messages=[*opening, question])
            (_print_json if as_json else _print_text)(answering, request)
        return
    if prompt and not Path(artifact).exists() and (Path(prompt) / MANIFEST).is_file():
        right = shlex.join(["phi-edge", "run", prompt, artifact])
        raise RequestError(f"{prompt} is an artifact, and comes first: {right}")
    opened = open_artifact(Path(artifact))
    if system is not None and as_chat is False:
        raise RequestError("--system is for a chat, and --raw gives the prompt as it is: leave one of them out")
    if prompt is None and as_json:
        raise RequestError("--json needs a prompt: give one, or - to read it from stdin")
    if prompt is None and (as_chat is False or sys.stdin is None or not sys.stdin.isatty()):
        raise RequestError("no prompt; give one, or - to read it from stdin; on a terminal, none starts a conversation")
    graphics = Graphics(adapter=adapter, allow_cpu=allow_cpu)
    if device is None and lab is not None:
        raise RequestError("--lab lists devices, and none was asked for: give --device NAME, or leave --lab out")
    if device is None:
        check_intact(opened)
        runtime = open_runtime(opened, threads=threads, graphics=graphics)
    elif graphics != ANY_ADAPTER:
        raise RequestError(
            "--adapter and --allow-cpu are for this machine; for a device set adapter and allow_cpu in its table of "
            "lab.toml"
        )
    else:
        from devices.drivers.table import open_device_runtime

        runtime = open_device_runtime(
            artifact, device, lab=lab, threads=threads, say=lambda what: echo(what, err=True), wait_s=wait_s
        )
    with contextlib.closing(runtime):
        if (hint := str(runtime.suggested)) and (temperature, top_k, top_p) == (0, None, None):
            click.echo(
                f"note: the model's makers suggest {hint}; without options the likeliest token is taken", err=True
            )
        if prompt is None:
            if not runtime.has_template:
                raise RequestError(f"{artifact}: has no chat template, so it cannot converse; give a prompt")
            chat(runtime, opening, template)
            return
        text = _read_stdin() if prompt == "-" else prompt
        if runtime.has_template if as_chat is None else as_chat:
            request = dataclasses.replace(template, messages=[*opening, Message("user", text)])
        elif opening:
            raise RequestError(f"{artifact}: has no chat template, so there is no place for --system; leave it out")
        else:
            request = dataclasses.replace(template, prompt=text)
        (_print_json if as_json else _print_text)(runtime, request)


def _service(device: str, lab: Path | None) -> CloudDriver | None:
    """The device, if it is a service that runs its own model. Raises LabError."""
    from devices.drivers.cloud.device import CloudDevice
    from devices.drivers.cloud.driver import CloudDriver
    from devices.drivers.table import find_device

    row = find_device(device, lab)
    return CloudDriver(device, row) if isinstance(row, CloudDevice) else None


def _quoted(given: Mapping[str, Any], rest: str) -> str:
    """The command line with the words of the prompt as one."""
    words = ["phi-edge", "run", str(given.get("artifact", "ARTIFACT")), f"{given.get('prompt') or ''} {rest}".strip()]
    return shlex.join(words)


def _read_stdin() -> str:
    if sys.stdin is None:
        raise RequestError("the prompt is -, and stdin is closed; give the prompt itself")
    data = sys.stdin.buffer.read(MOST_PROMPT_BYTES + 1)
    if len(data) > MOST_PROMPT_BYTES:
        raise RequestError(f"the prompt on stdin has more than {MOST_PROMPT_BYTES} bytes; give a shorter one")
    for encoding in ("utf-8-sig", sys.stdin.encoding):
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode(encoding).replace("\r\n", "\n")
    raise RequestError("the prompt on stdin is not text in UTF-8; save it as UTF-8")


def _typed(text: str) -> str:
    try:
        return typed_text(text)
    except ValueError as error:
        raise RequestError(f"the prompt: {error}") from error


def _print_text(runtime: Runtime, request: GenerateRequest) -> None:
    times: list[float] = []
    for event in runtime.generate(request):
        echo_answer(event.text)
        if isinstance(event, TokenEvent):
            if event.at_s is not None:
                times.append(event.at_s)
        else:
            echo()
            echo(summary(event, times), err=True)
            if request.prompt is not None and event.finish == "eos" and not times and runtime.has_template:
                echo("The model ended at once: it answers questions. Leave --raw out.", err=True)
            _refuse_error(event)


def _print_json(runtime: Runtime, request: GenerateRequest) -> None:
    for event in runtime.generate(request):
        kind = "token" if isinstance(event, TokenEvent) else "done"
        fields = {name: value for name, value in dataclasses.asdict(event).items() if name not in NOT_ASKED}
        echo(json.dumps({"type": kind} | fields))
        if isinstance(event, DoneEvent):
            _refuse_error(event)


def _refuse_error(done: DoneEvent) -> None:
    if done.finish == "error":
        raise EngineError(done.error or "the device reported an error without a message")


def summary(done: DoneEvent, times: list[float]) -> str:
    """One line for people: how it ended, how many tokens, how fast. `times` are the tokens' at_s."""
    ending = done.finish if done.stop_string is None else f"{done.finish} at {done.stop_string!r}"
    parts = [f"{done.usage.prompt} + {done.usage.completion} tokens, {ending}"]
    if times:
        parts.append(f"first token after {times[0]:.3f} s")
    if done.timings.prefill_s and done.usage.prefilled:
        parts.append(f"prefill {done.usage.prefilled / done.timings.prefill_s:.1f} tokens/s")
    if len(times) > 1 and times[-1] > times[0]:
        parts.append(f"decode {(done.usage.completion - 1) / (times[-1] - times[0]):.1f} tokens/s")
    if done.usage.proposed:
        parts.append(f"{done.usage.accepted} of {done.usage.proposed} guesses right")
    if done.memory is not None and done.memory.peak_bytes is not None:
        parts.append(f"peak memory {done.memory.peak_bytes / 2**20:.0f} MiB")
    return "; ".join(parts)
