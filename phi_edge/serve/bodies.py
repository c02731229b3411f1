"""The bodies that clients send to /v1/chat/completions and /v1/completions: OpenAI's fields that we serve, a few of our
own, and no others. The OpenAPI page is made of these classes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from runtimes.loop.tokens import MAX_LOGPROBS

Text = Annotated[str, Field(min_length=1)]
Id = Annotated[int, Field(ge=0)]
Stop = Text | Annotated[list[Text], Field(max_length=16)]
Count = Annotated[int, Field(ge=1, le=1 << 31)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


def _of_type(kind: type[bool] | type[int]) -> BeforeValidator:
    """For Python, and so for Literal, 0 is False and True is 1."""

    def check(value: Any) -> Any:
        if value is not None and type(value) is not kind:
            raise ValueError(f"must be {'true or false' if kind is bool else 'a whole number'}")
        return value

    return BeforeValidator(check)


# The only values that we serve of some fields.
Never = Annotated[Literal[False], _of_type(bool)]
Always = Annotated[Literal[True], _of_type(bool)]
One = Annotated[Literal[1], _of_type(int)]


class Body(BaseModel):
    """A part of a body: unknown fields are refused, and a text is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Called(Body):
    """What a call calls."""

    name: str
    arguments: str  # JSON


class Call(Body):
    """A call that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: Called


class ChatMessage(Body):
    """A turn. What OpenAI's answers also have may come back, as long as it is null or empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class Function(Body):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None  # a JSON schema
    strict: bool | None = None


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """Which function."""

    name: str


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(Body):
    """The schema that an answer follows, and what is written beside it."""

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class SchemaFormat(Body):
    """The answer follows a JSON schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class PlainFormat(Body):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


def _format_tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "Schema" if kind == "json_schema" else "Plain"


ResponseFormat = Annotated[
    Annotated[PlainFormat, Tag("Plain")] | Annotated[SchemaFormat, Tag("Schema")], Discriminator(_format_tag)
]


class StreamOptions(Body):
    """What a stream has besides its tokens."""

    include_usage: bool | None = None
    include_obfuscation: Never | None = None


class SamplingBody(Body):
    """What both kinds of completion share. Without a value: what the model's makers suggest, else greedy."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: Stop | None = None
    n: One | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None  # who asks; the answer does not depend on it
    # Not OpenAI's.
    top_k: Count | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    regex: str | None = None
    lark: str | None = None
    speculate: bool | None = None


class ChatBody(SamplingBody):
    """/v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: Always | None = None
    store: Never | None = None


class CompletionBody(SamplingBody):
    """/v1/completions"""

    # A text, a list of one text, or ids.
    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)] | Annotated[list[Id], Field(min_length=1)]
    max_tokens: Count | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: One | None = None
    echo: Never | None = None
    suffix: None = None
