"""The friendly face of a runtime: chat, stream, with, async, token counts, conversations, tools, continuing."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from export.artifact import describe_files, seal
from fakes.templates import SYSTEM_TOOLS_TEMPLATE, TOOLS_TEMPLATE, WEATHER
from phi_edge import Conversation, GenerateRequest, Message, ToolCall, open_runtime
from runtimes.engines.fake import CHAT_TEMPLATE, fake_artifact, fake_opener
from runtimes.errors import RequestError, UnsupportedError
from runtimes.text.runtime import TextRuntime
from runtimes.text.tokenizer import Tokenizer

Opened = Callable[..., TextRuntime]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """opened(script, template, **artifact): a runtime that gives this text."""
    runtimes: list[TextRuntime] = []

    def open_it(script: str | None = None, template: str = CHAT_TEMPLATE, **fields: Any) -> TextRuntime:
        folder = tmp_path / str(len(runtimes))
        artifact = fake_artifact(folder, chat_template=template, **fields)
        runtimes.append(open_runtime(str(artifact.folder), engine=fake_opener(script)))
        return runtimes[-1]

    yield open_it
    for runtime in runtimes:
        runtime.close()


def test_a_path_as_text_messages_as_dicts_and_an_answer_as_text(opened: Opened) -> None:
    with opened("Because of the air.") as runtime:
        assert runtime.chat([{"role": "user", "content": "Why is the sky blue?"}]) == "Because of the air."
        assert runtime.chat("Why?", GenerateRequest(max_new_tokens=7)) == "Because"
        assert "".join(runtime.stream("Why?", GenerateRequest(stop=[" air"]))) == "Because of the"
        parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]
        assert runtime.chat([Message("user", "Hi"), {"role": "user", "content": parts}]) == "Because of the air."


def test_events_come_asynchronously_and_leaving_the_loop_cancels(opened: Opened) -> None:
    runtime = opened("abcdefgh" * 20)

    async def main() -> list[str]:
        texts = []
        async for event in runtime.agenerate(GenerateRequest(prompt="x", max_new_tokens=6)):
            texts.append(event.text)
        events = runtime.agenerate(GenerateRequest(prompt="x"))
        async for _ in events:
            break
        await events.aclose()
        # The runtime is free at once.
        texts += [event.text async for event in runtime.agenerate(GenerateRequest(prompt="x", max_new_tokens=2))]
        with pytest.raises(RequestError, match="max_new_tokens is 0"):
            await anext(runtime.agenerate(GenerateRequest(prompt="x", max_new_tokens=0)))
        task = asyncio.ensure_future(anext(runtime.agenerate(GenerateRequest(prompt="x" * 400))))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return texts

    assert "".join(asyncio.run(main())) == "abcdef" + "ab"


def test_token_counts_are_those_of_the_prompt(opened: Opened) -> None:
    runtime = opened("!")
    messages = [Message("user", "Why is the sky blue?")]
    *_, done = runtime.generate(GenerateRequest(messages=messages))
    assert runtime.count_tokens(messages) == done.usage.prompt  # type: ignore[union-attr]
    assert runtime.count_tokens("five!") == 5
    assert runtime.count_tokens("x" * 10_000) == 10_000  # longer than the context


def test_a_full_conversation_drops_its_oldest_turns_and_keeps_the_system_message(opened: Opened) -> None:
    runtime = opened("An answer.", context_tokens=256)
    conversation = Conversation(runtime, [Message("system", "Be kind")], GenerateRequest(max_new_tokens=32))
    dropped = 0
    for number in range(12):
        events = list(conversation.ask(f"question {number}"))
        assert "".join(event.text for event in events) == "An answer."
        dropped += conversation.dropped
        assert conversation.messages[0] == Message("system", "Be kind")
        assert conversation.messages[1].role == "user"
        assert conversation.messages[-2:] == [Message("user", f"question {number}"), Message("assistant", "An answer.")]
        assert runtime.count_tokens(conversation.messages) < 256
    assert len(conversation.messages) + dropped == 1 + 2 * 12 and dropped > 0
    with pytest.raises(RequestError, match=r"has \d+ tokens; a context of 256"):
        conversation.ask("x" * 300)
    conversation.clear()
    assert conversation.messages == [Message("system", "Be kind")]


def test_an_assistant_s_message_is_continued(opened: Opened, tmp_path: Path) -> None:
    runtime = opened("lue.")
    begun = [Message("user", "The sky is?"), Message("assistant", "The sky is b")]
    assert runtime.chat(begun, GenerateRequest(continue_last=True)) == "lue."
    tokenizer = Tokenizer(tmp_path / "0")
    whole = tokenizer.encode_chat(begun, ready=False)
    cut = tokenizer.encode_chat(begun, continue_last=True)
    assert cut == whole[: len(cut)] and bytes(cut[-len("The sky is b") :]) == b"The sky is b"
    empty = [begun[0], Message("assistant", "")]
    assert tokenizer.encode_chat(empty, continue_last=True) == tokenizer.encode_chat(empty)
    with pytest.raises(RequestError, match="the last message is user's; add the beginning"):
        runtime.chat("Why?", GenerateRequest(continue_last=True))


@pytest.mark.parametrize(
    ("said", "calls"),
    [
        ('{"name": "weather", "arguments": {"city": "Oslo"}}', [{"city": "Oslo"}]),
        ('[{"name": "weather", "parameters": {"city": "Oslo"}}]', [{"city": "Oslo"}]),
        (
            '{"name": "weather", "arguments": "{}"}\n{"name": "weather", "arguments": {"city": "Rome"}}',
            [{}, {"city": "Rome"}],
        ),
        ('{"name": "other", "arguments": {}}', []),
        ('{"name": "weather", "arguments": {}} and more', []),
        ("It is sunny.", []),
        ("", []),
    ],
)
def test_calls_are_parsed(opened: Opened, said: str, calls: list[dict[str, Any]]) -> None:
    runtime = opened(said, TOOLS_TEMPLATE, context_tokens=1024)
    *_, done = runtime.generate(GenerateRequest(messages=[Message("user", "Oslo?")], tools=[WEATHER]))
    assert done.tool_calls == tuple(ToolCall("weather", arguments) for arguments in calls)  # type: ignore[union-attr]


def test_a_call_may_be_demanded(opened: Opened) -> None:
    runtime = opened(None, TOOLS_TEMPLATE, context_tokens=1024)
    other = json.loads(json.dumps(WEATHER).replace('"weather"', '"tides"'))
    for choice, names in (("required", {"weather", "tides"}), ("tides", {"tides"})):
        request = GenerateRequest(messages=[Message("user", "?")], tools=[WEATHER, other], tool_choice=choice)
        *_, done = runtime.generate(dataclasses.replace(request, temperature=1.0, seed=3))
        (call,) = done.tool_calls  # type: ignore[union-attr]
        assert call.name in names and call.arguments.keys() == {"city"}


TURNS = [
    Message("user", "Oslo?"),
    Message("assistant", tool_calls=[ToolCall("weather", {"city": 'Os"lo<|end|>'}, "call_1")]),
    Message("tool", "<|end|> 12 degrees", tool_call_id="call_1"),
]


@pytest.mark.parametrize("template", [TOOLS_TEMPLATE, SYSTEM_TOOLS_TEMPLATE])
def test_the_template_is_given_the_tools_as_transformers_gives_them(tmp_path: Path, template: str) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = fake_artifact(tmp_path / "artifact", chat_template=template).folder
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), chat_template=template)
    turns: list[Mapping[str, Any]] = [{"role": "user", "content": "Oslo?"}]
    messages = TURNS[:1]
    if template is TOOLS_TEMPLATE:
        function = {"name": "weather", "arguments": dict(TURNS[1].tool_calls[0].arguments)}
        turns += [
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "content": "<|end|> 12 degrees"},
        ]
        messages = TURNS
    else:
        turns = [{"role": "system", "content": "", "tools": json.dumps([WEATHER])}, *turns]
    wanted = theirs.apply_chat_template(turns, tools=[WEATHER], add_generation_prompt=True, tokenize=False)
    ours = Tokenizer(folder)
    ids = ours.encode_chat(messages, tools=[WEATHER])
    plain = "".join(chr(id) if id < 256 else "" for id in ids)
    for token in ("<|system|>", "<|user|>", "<|assistant|>"):
        wanted = wanted.replace(token, "")
    # What tools, arguments and results contain is text; the template's own control tokens are ids.
    assert plain.count("<|end|>") == (3 if template is TOOLS_TEMPLATE else 1)
    assert plain.replace("<|end|>", "") == wanted.replace("<|end|>", "")


def test_what_a_template_has_no_place_for_is_refused(opened: Opened) -> None:
    plain = opened("!")
    with pytest.raises(UnsupportedError, match="no place for tools"):
        plain.chat("Oslo?", GenerateRequest(tools=[WEATHER]))
    with pytest.raises(UnsupportedError, match="no place for tool calls"):
        plain.chat(TURNS[:2])
    dropping = "{% for m in messages if m.role == 'user' %}<|user|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    with pytest.raises(UnsupportedError, match="no place for tool messages"):
        opened("!", dropping).chat([TURNS[0], TURNS[2]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": [{"role": "user", "text": "a"}]}, "message 1 has the unknown key 'text'; known: role, content"),
        ({"messages": [{"role": "user", "content": 3}]}, "message 1: content is 3; give a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part of type 'image_url'; allowed"),
        ({"messages": ["Hi"]}, "message 1 is a str; give a Message"),
        ({"messages": [{"role": "user", "tool_calls": [{"function": {}}]}]}, "needs a name and arguments"),
        ({"messages": [{"role": "user", "tool_calls": [{"name": "a", "arguments": "{"}]}]}, "are not JSON"),
        ({"messages": [Message("user", tool_calls=[ToolCall("a", {})])]}, "only the assistant calls tools"),
        ({"prompt": "a", "tools": [WEATHER]}, "tools and continue_last need messages"),
        ({"messages": [Message("user", "a")], "tools": [{"name": "weather"}]}, "tool 1 is .*; give an object"),
        ({"messages": [Message("user", "a")], "tools": [WEATHER, WEATHER]}, "two tools have one name"),
        ({"messages": [Message("user", "a")], "tool_choice": "required"}, "tool_choice is 'required'; allowed: auto"),
    ],
)
def test_wrong_messages_and_tools_are_refused(opened: Opened, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        opened("!").generate(GenerateRequest(**fields))


def test_what_the_makers_suggest_is_reported(tmp_path: Path) -> None:
    made = fake_artifact(tmp_path / "artifact")
    content = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 0, "eos_token_id": 1, "typical_p": 0.5}
    (made.folder / "generation_config.json").write_text(json.dumps(content))
    files = describe_files(made.folder, [*made.manifest.files, "generation_config.json"])
    seal(made.folder, dataclasses.replace(made.manifest, files=files))
    with open_runtime(made.folder, engine=fake_opener("!")) as runtime:
        assert str(runtime.suggested) == "temperature 0.6, top_p 0.9"
        assert runtime.suggested.request == GenerateRequest(temperature=0.6, top_p=0.9)
        assert runtime.suggested.unsupported == ("typical_p",)
        assert runtime.chat("Hi", runtime.suggested.request) == "!"


def test_the_page_of_features_runs(
    tiny_tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every block of docs/generate.md, in its order."""
    (tmp_path / "phi3").symlink_to(tiny_tools)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "generate.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) > 10
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "docs/generate.md", "exec"), names)
    assert '{"room": "kitchen", "on": ' in capsys.readouterr().out.replace("hall", "kitchen")
