"""The values in a bundle's sources, taken from the artifact, and how each language writes a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from export.artifact import Artifact
from export.strict import read_json
from runtimes.api import Message
from runtimes.errors import EngineError, RequestError, UnsupportedError
from runtimes.text.template import ChatTemplate, load_template
from runtimes.text.token_bytes import control_names, hidden_names


@dataclass(frozen=True, kw_only=True)
class Turns:
    """A chat template as plain pieces: what is between the contents. Enough for every Phi-3; others are refused."""

    open_user: str  # before the first message, a user's
    to_answer: str  # from a user's message to the answer
    to_next_user: str  # from an answer to the next user's message
    open_system: str | None  # before a system message; None where the template takes none
    system_to_user: str | None


def read_turns(artifact: Artifact) -> Turns | None:
    """None without a chat template. Raises UnsupportedError for one that is not made of such pieces."""
    config = _json(artifact, "tokenizer_config.json")
    names = {name: _token_text(config.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    template = load_template(artifact.folder, config, names, artifact.manifest.files)
    if template is None:
        return None
    if template.writes_date:
        raise UnsupportedError(
            "this artifact's chat template writes the date, and an app would write that of its bundle; write it by hand"
        )
    user, answer = Message("user", "first"), Message("assistant", "second")
    single = _between(template, [user])
    triple = _between(template, [user, answer, Message("user", "third")])
    turns = Turns(
        open_user=single[0], to_answer=single[1], to_next_user=triple[2], open_system=None, system_to_user=None
    )
    try:
        system = _between(template, [Message("system", "zeroth"), user])
    except (RequestError, UnsupportedError):
        pass  # it takes no system message, or would drop it in silence
    else:
        turns = Turns(
            open_user=turns.open_user,
            to_answer=turns.to_answer,
            to_next_user=turns.to_next_user,
            open_system=system[0],
            system_to_user=system[1],
        )
    longer = [user, answer, Message("user", "third"), Message("assistant", "fourth"), Message("user", "fifth")]
    expected = [turns.open_user, *[turns.to_answer, turns.to_next_user] * 2, turns.to_answer]
    if _between(template, longer) != expected:
        raise UnsupportedError("this artifact's chat template is not a plain sequence of turns; write its app by hand")
    return turns


def control_tokens(artifact: Artifact) -> list[str]:
    """The texts that a tokenizer makes control tokens of: a message must not contain one."""
    return control_names(_json(artifact, "tokenizer.json"))


def hidden_tokens(artifact: Artifact) -> list[str]:
    """Those of them that are not shown: a runner that writes them has come to the end of its answer. Others, such as
    Phi-4-mini's `<|tool_call|>`, are a part of it."""
    hidden = hidden_names(_json(artifact, "tokenizer.json"), _json(artifact, "tokenizer_config.json"))
    return [name for name in control_tokens(artifact) if name in hidden or name in stop_texts(artifact)]


def stop_texts(artifact: Artifact) -> set[str]:
    """The texts of the added tokens that end an answer."""
    stop = artifact.manifest.tokens.stop
    return {
        token["content"] for token in _json(artifact, "tokenizer.json").get("added_tokens", ()) if token["id"] in stop
    }


def kotlin_text(text: str) -> str:
    """A Kotlin string literal. `$` would begin a template."""
    return _quoted(text, {"$": "\\$", "\b": "\\b"})


def csharp_text(text: str) -> str:
    """A C# string literal (a regular one: no @, no $)."""
    return _quoted(text, {"\0": "\\0", "\a": "\\a"})


def systemd_text(text: str) -> str:
    """One word of a systemd command line. `%` begins a specifier, `$` a variable."""
    if any(ord(character) < 32 for character in text):
        raise RequestError(f"{text!r} cannot be written in a systemd unit: it has a control character; rename it")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def _quoted(text: str, special: dict[str, str]) -> str:
    """Both languages share the rest: ASCII stays, everything else is one or two \\uXXXX (UTF-16)."""
    known = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"} | special
    written = []
    for character in text:
        if character in known:
            written.append(known[character])
        elif " " <= character <= "~":
            written.append(character)
        else:
            data = character.encode("utf-16-be", "surrogatepass")
            written += [f"\\u{data[at : at + 2].hex()}" for at in range(0, len(data), 2)]
    return f'"{"".join(written)}"'


def _between(template: ChatTemplate, messages: Sequence[Message]) -> list[str]:
    """The template's own text before, between and after the contents."""
    stretches = [""]
    for piece in template.render(messages):
        if piece.trusted:
            stretches[-1] += piece.text
        else:
            stretches.append("")
    if len(stretches) != len(messages) + 1:
        raise UnsupportedError("this artifact's chat template repeats a message; write its app by hand")
    return stretches


def _json(artifact: Artifact, name: str) -> dict[str, Any]:
    path = artifact.find(name)
    content = {} if path is None else read_json(path, EngineError, "export it again")
    return content if isinstance(content, dict) else {}


def _token_text(token: object) -> str:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""
