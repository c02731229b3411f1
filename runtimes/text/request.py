"""From a GenerateRequest to ids and a TokenRequest: what contradicts itself is refused here; the ranges of numbers are
checked where they are used (runtimes.loop.tokens)."""

from __future__ import annotations

import json
import secrets

from export.artifact import Manifest
from runtimes.api import GenerateRequest
from runtimes.errors import RequestError
from runtimes.loop.tokens import Grammar, GrammarKind, Sampling, TokenRequest
from runtimes.text.messages import as_messages
from runtimes.text.tokenizer import Tokenizer
from runtimes.text.tools import call_schema, check_tools
from runtimes.text.typed import typed


def checked(request: GenerateRequest) -> GenerateRequest:
    """The same request, its sequences as lists. Raises RequestError for a field of another type than it should have,
    and for fields that exclude each other."""
    request = typed(request)
    given = [name for name in ("prompt", "messages", "token_ids") if getattr(request, name) is not None]
    if len(given) != 1:
        raise RequestError(
            f"the request has {' and '.join(given) or 'nothing'}; give one of prompt, messages, token_ids"
        )
    if request.messages is None and (request.tools or request.continue_last):
        raise RequestError("tools and continue_last need messages: nothing else goes through the chat template")
    check_tools(request.tools, request.tool_choice)
    grammar_of(request)
    if "" in request.stop:
        raise RequestError("a stop string is empty and would end every answer; leave it out")
    if request.ignore_stop_ids and (request.stop or request.stop_ids):
        raise RequestError("ignore_stop_ids asks for exactly max_new_tokens, so stop and stop_ids must be left out")
    return request


def encode(request: GenerateRequest, tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids. Raises RequestError."""
    if request.prompt is not None:
        return tokenizer.encode_prompt(request.prompt)
    if request.messages is not None:
        messages = as_messages(request.messages)
        if request.continue_last and (messages[-1].role != "assistant" or messages[-1].tool_calls):
            raise RequestError(
                f"continue_last goes on with an assistant's text, and the last message is {messages[-1].role}'s; add "
                "the beginning of the answer, or leave it out"
            )
        return tokenizer.encode_chat(messages, tools=request.tools, continue_last=request.continue_last)
    assert request.token_ids is not None
    return list(request.token_ids)


def token_request(request: GenerateRequest, ids: list[int], manifest: Manifest, spent_s: float) -> TokenRequest:
    """What the loop is asked for. `spent_s` have passed since the request was accepted."""
    return TokenRequest(
        ids=ids,
        max_new_tokens=request.max_new_tokens,
        sampling=Sampling(
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            min_p=request.min_p,
            repetition_penalty=request.repetition_penalty,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            seed=secrets.randbits(64) if request.seed is None else request.seed,
        ),
        stop_ids=() if request.ignore_stop_ids else (*manifest.tokens.stop, *request.stop_ids),
        deadline_s=None if request.deadline_s is None else request.deadline_s - spent_s,
        session=request.session,
        adapter=request.adapter,
        grammar=grammar_of(request),
        logprobs=request.logprobs,
        speculate=request.speculate,
    )


def grammar_of(request: GenerateRequest) -> Grammar | None:
    """What the answer must match. Raises RequestError where there are two such things."""
    schemas = {"json_schema": request.json_schema, "tool_choice": call_schema(request.tools, request.tool_choice)}
    given = {
        name: Grammar("json_schema", _schema_text(schema)) for name, schema in schemas.items() if schema is not None
    }
    texts: dict[GrammarKind, str | None] = {"regex": request.regex, "lark": request.lark}
    given |= {kind: Grammar(kind, text) for kind, text in texts.items() if text is not None}
    if len(given) > 1:
        raise RequestError(f"the request has {' and '.join(given)}; give one of them")
    return next(iter(given.values()), None)


def _schema_text(schema: object) -> str:
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"the JSON schema cannot be written as JSON ({error}); give plain objects") from error
