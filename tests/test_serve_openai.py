"""`phi-edge serve` as the official openai client uses it, unmodified."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from conftest import TINY
from pydantic import BaseModel

from fakes.served import served
from phi_edge.serve.app import Settings
from runtimes.registry import open_runtime
from runtimes.text.tokenizer import Tokenizer

LAMP = "Turn off the lamp in the kitchen."
MESSAGES = [{"role": "user", "content": LAMP}]
MODEL = "tiny"
PARAMETERS = {
    "type": "object",
    "properties": {"room": {"enum": ["kitchen", "hall"]}, "on": {"type": "boolean"}},
    "required": ["room", "on"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "lamp", "description": "Switch a lamp", "parameters": PARAMETERS},
}


TINY_IDS = Tokenizer(TINY).encode_prompt("The light")


class Lamp(BaseModel):
    """What response_format is made of."""

    room: Literal["kitchen", "hall"]
    on: bool


@pytest.fixture(scope="module")
def client(tiny_tools: Path) -> Iterator[Any]:
    """openai.OpenAI, as Any: its types ask for a typed dictionary where everyone writes a plain one."""
    with (
        served(open_runtime(tiny_tools, threads=1), Settings(model=MODEL)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "phi-edge"
    with pytest.raises(openai.NotFoundError, match="the model is 'other'; this server has tiny"):
        client.models.retrieve("other")


def test_a_chat(client: Any) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    (choice,) = answer.choices
    assert "lamp in the kitchen" in choice.message.content
    assert (choice.finish_reason, choice.message.role, choice.message.tool_calls) == ("stop", "assistant", None)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert again.choices == answer.choices
    assert again.usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens - 1
    # The answer itself is a turn of the next request.
    turns = [*MESSAGES, choice.message, {"role": "user", "content": "And on again."}]
    assert client.chat.completions.create(model=MODEL, messages=turns).choices[0].message.content


def test_a_stream_is_the_same_answer_in_pieces(client: Any) -> None:
    fields = {"model": MODEL, "messages": MESSAGES, "temperature": 1.5, "seed": -7, "max_tokens": 12}
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (last.choices, last.usage.completion_tokens) == ([], whole.usage.completion_tokens)
    assert len({chunk.id for chunk in chunks}) == 1


def test_stop_and_length(client: Any) -> None:
    stopped = client.chat.completions.create(model=MODEL, messages=MESSAGES, stop=[" lamp", "never"])
    assert stopped.choices[0].finish_reason == "stop" and "lamp" not in stopped.choices[0].message.content
    cut = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=2)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 2)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client: Any, stream: bool) -> None:
    fields = {"model": MODEL, "messages": MESSAGES, "max_tokens": 5, "logprobs": True, "top_logprobs": 3}
    if stream:
        chunks = client.chat.completions.create(**fields, stream=True)
        entries = [entry for chunk in chunks for entry in (chunk.choices[0].logprobs or Nothing).content]
    else:
        entries = client.chat.completions.create(**fields).choices[0].logprobs.content
    assert len(entries) == 5
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (entry.token, entry.logprob)
        assert bytes(entry.bytes).decode() == entry.token


class Nothing:
    content = ()


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_json_schema(client: Any, temperature: float) -> None:
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=MESSAGES,
        response_format=Lamp,
        temperature=temperature,
        max_tokens=200,
        stop=["never"],
    )
    assert isinstance(answer.choices[0].message.parsed, Lamp)
    plain = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=300, temperature=temperature
    )
    if plain.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(plain.choices[0].message.content), dict)


def test_a_regular_expression_is_a_field_of_ours(client: Any) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body={"regex": "(yes|no)!"})
    assert answer.choices[0].message.content in ("yes!", "no!")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "lamp"}}])
def test_a_tool_is_called_and_its_result_is_read(client: Any, choice: object) -> None:
    fields = {"model": MODEL, "tools": [TOOL]}
    answer = client.chat.completions.create(**fields, messages=MESSAGES, tool_choice=choice)
    message = answer.choices[0].message
    (call,) = message.tool_calls
    assert (answer.choices[0].finish_reason, call.function.name) == ("tool_calls", "lamp")
    assert json.loads(call.function.arguments).keys() == {"room", "on"}
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"done": true}'}
    after = client.chat.completions.create(**fields, messages=[*MESSAGES, message, result])
    assert after.choices[0].finish_reason in ("stop", "tool_calls")
    *_, before_last = client.chat.completions.create(**fields, messages=MESSAGES, tool_choice=choice, stream=True)
    assert before_last.choices[0].finish_reason == "tool_calls"


def test_an_answer_without_a_call_streams(client: Any) -> None:
    chunks = client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[TOOL], stream=True)
    pieces = [chunk.choices[0].delta.content for chunk in chunks]
    assert len([piece for piece in pieces if piece]) > 2
    none = client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[TOOL], tool_choice="none")
    assert none.choices[0].message.tool_calls is None


@pytest.mark.parametrize("stream", [False, True])
def test_the_older_completions(client: Any, stream: bool) -> None:
    fields = {"model": MODEL, "prompt": "The light", "logprobs": 2, "max_tokens": 6}
    if stream:
        chunks = list(client.completions.create(**fields, stream=True))
        text = "".join(chunk.choices[0].text for chunk in chunks)
        tokens = [token for chunk in chunks for token in chunk.choices[0].logprobs.tokens]
    else:
        (choice,) = client.completions.create(**fields).choices
        text, tokens = choice.text, choice.logprobs.tokens
        assert [len(top) for top in choice.logprobs.top_logprobs] == [2] * 6
        assert choice.logprobs.text_offset == [sum(map(len, tokens[:n])) for n in range(6)]
    assert text == "".join(tokens) and len(tokens) == 6
    for prompt in (["The light"], TINY_IDS):
        again = client.completions.create(**(fields | {"prompt": prompt}))
        assert again.choices[0].text == text


def test_responses(client: Any) -> None:
    response = client.responses.create(model=MODEL, input=LAMP, instructions="Be brief", metadata={"a": "b"})
    assert "lamp in the kitchen" in response.output_text
    assert (response.status, response.metadata, response.usage is not None) == ("completed", {"a": "b"}, True)
    cut = client.responses.create(model=MODEL, input=[{"role": "user", "content": LAMP}], max_output_tokens=2)
    assert cut.status == "incomplete" and cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    parsed = client.responses.parse(model=MODEL, input=LAMP, text_format=Lamp)
    assert isinstance(parsed.output_parsed, Lamp)


def test_responses_stream(client: Any) -> None:
    with client.responses.stream(
        model=MODEL, input=LAMP, include=["message.output_text.logprobs"], top_logprobs=1
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == final.output_text and "lamp in the kitchen" in text
    assert [event.sequence_number for event in events] == sorted(event.sequence_number for event in events)
    logprobs = final.output[0].content[0].logprobs
    assert logprobs and final.usage is not None and len(logprobs) == final.usage.output_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_responses_with_tools(client: Any, stream: bool) -> None:
    fields = {"model": MODEL, "tools": [{"type": "function", **TOOL["function"]}], "tool_choice": "required"}
    if stream:
        *events, last = client.responses.create(input=LAMP, stream=True, **fields)
        assert "response.function_call_arguments.done" in {event.type for event in events}
        response = last.response
    else:
        response = client.responses.create(input=LAMP, **fields)
    (call,) = response.output
    assert (call.type, call.name, json.loads(call.arguments).keys()) == ("function_call", "lamp", {"room", "on"})
    turns = [
        {"role": "user", "content": LAMP},
        call,
        {"type": "function_call_output", "call_id": call.call_id, "output": "{}"},
    ]
    after = client.responses.create(input=turns, **{**fields, "tool_choice": "none"})
    assert after.output[0].type == "message"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"n": 2}, "n", "n is 2"),
        ({"logit_bias": {"1": 2}}, "logit_bias", "unknown or unsupported field logit_bias"),
        ({"audio": {"voice": "a", "format": "wav"}}, "audio", "unknown or unsupported field audio"),
        ({"temperature": -1}, "temperature", "temperature is -1"),
        ({"top_logprobs": 2}, "top_logprobs", "top_logprobs needs logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "are one field"),
        ({"stop": [""]}, "stop.0", "stop.0 is ''"),
        ({"messages": []}, "messages", "messages is"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role", "messages.0.role is 'robot'"),
        ({"messages": [{"role": "user", "content": "x " * 6000}]}, "messages", "a context of 4096"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "robot"}}}},
         None, "json_schema cannot be used"),
        ({"tool_choice": "required"}, None, "tool_choice is 'required'; allowed: auto"),
        ({"extra_body": {"regex": "("}}, None, "regex cannot be used"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream: true"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(client: Any, fields: dict[str, object], param: str | None, message: str) -> None:
    for stream in (False, True) if "stream_options" not in fields else (False,):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**({"model": MODEL, "messages": MESSAGES, "stream": stream} | fields))
        assert refused.value.param == param and message in str(refused.value)


def test_an_unsupported_field_of_responses_is_named(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="unsupported field previous_response_id"):
        client.responses.create(model=MODEL, input=LAMP, previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError, match="store is True"):
        client.responses.create(model=MODEL, input=LAMP, store=True)
