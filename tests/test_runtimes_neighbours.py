"""`bundle --for ollama|foundry|hub`: a strict reader of Modelfiles, the template as Go would run it, the layout that
Foundry Local scans for, a card that huggingface_hub reads, and an upload to a hub on 127.0.0.1."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from export.artifact import Artifact, Format, describe_files, open_artifact, seal
from fakes.hub import FakeHub
from phi_edge.main import main
from runtimes.bundle.foundry import prompt_template
from runtimes.bundle.ollama import go_template
from runtimes.bundle.values import Turns
from runtimes.engines.fake import fake_artifact

PHI3 = Turns(
    open_user="<|user|>\n",
    to_answer="<|end|>\n<|assistant|>\n",
    to_next_user="<|end|>\n<|user|>\n",
    open_system="<|system|>\n",
    system_to_user="<|end|>\n<|user|>\n",
)
ODD = Turns(open_user='{{ "<user>"\n', to_answer='"""end', to_next_user="}}next", open_system=None, system_to_user=None)
Talk = Sequence[tuple[str, str]]
TALKS: list[Talk] = [
    [("user", "first?")],
    [("system", "brief"), ("user", "first?")],
    [("user", "first?"), ("assistant", "one"), ("user", "second?")],
    [("system", "brief"), ("user", "first?"), ("assistant", "one"), ("user", "second?")],
]
COMMAND = re.compile(
    r"(?:(?P<comment>\#[^\n]*)|(?P<name>FROM|TEMPLATE|PARAMETER)[ \t]+(?:(?P<key>(?<=PARAMETER\ )[a-z_]+)[ \t]+)?"
    r'(?:"""(?P<long>.*?)"""|"(?P<quoted>[^"\n]*)"|(?P<plain>[^"\s]+)))\n',
    re.DOTALL,
)


def read_modelfile(text: str) -> list[tuple[str, str, str]]:
    """(command, a parameter's name, value) of each line, by the grammar of docs.ollama.com/modelfile; nothing else may
    be in it."""
    found, at = [], 0
    while at < len(text):
        match = COMMAND.match(text, at)
        assert match is not None, text[at : at + 60]
        at = match.end()
        if match["name"]:
            value = next(match[kind] for kind in ("long", "quoted", "plain") if match[kind] is not None)
            assert (match["key"] is not None) == (match["name"] == "PARAMETER")
            found.append((match["name"], match["key"] or "", value))
    return found


def run_go(template: str, talk: Talk) -> str:
    """The template's text for `.Messages`, for the part of Go's text/template that ours have."""
    parts = re.split(r"\{\{ (.*?) \}\}", template, flags=re.DOTALL)
    tokens = [(place % 2 == 1, part) for place, part in enumerate(parts) if part or place % 2]
    assert tokens[0] == (True, "range $i, $_ := .Messages") and tokens[-1] == (True, "end")
    return "".join("".join(one_message(tokens[1:-1], place, *message)) for place, message in enumerate(talk))


def one_message(tokens: Sequence[tuple[bool, str]], place: int, role: str, content: str) -> Iterator[str]:
    taken: list[bool] = []  # of each open if: whether a branch has been
    shown: list[bool] = []

    def holds(words: str) -> bool:
        match = re.fullmatch(r'eq (?:\.Role "(\w+)"|\$i (\d+))', words)
        assert match is not None, words
        return match[1] == role if match[1] else int(match[2]) == place

    for action, text in tokens:
        if not action:
            yield text if all(shown) else ""
        elif text.startswith("if "):
            shown.append(holds(text[3:]))
            taken.append(shown[-1])
        elif text.startswith("else"):
            shown[-1] = not taken[-1] and (text == "else" or holds(text.removeprefix("else if ")))
            taken[-1] = taken[-1] or shown[-1]
        elif text == "end":
            shown.pop(), taken.pop()
        elif all(shown):
            yield content if text == ".Content" else json.loads(text)


def expected(turns: Turns, talk: Talk) -> str:
    """The same by the pieces of the chat template."""
    text, before = "", ""
    for role, content in talk:
        opened = {
            ("", "user"): turns.open_user, ("", "system"): turns.open_system, ("system", "user"): turns.system_to_user,
            ("user", "assistant"): turns.to_answer, ("assistant", "user"): turns.to_next_user,
        }[before, role]  # fmt: skip
        text, before = f"{text}{opened}{content}", role
    return text + turns.to_answer


@pytest.mark.parametrize(("turns", "talks"), [(PHI3, TALKS), (ODD, TALKS[::2])], ids=["phi3", "odd, without a system"])
def test_gos_template_writes_what_the_chat_template_does(turns: Turns, talks: Sequence[Talk]) -> None:
    template = go_template(turns)
    assert '"""' not in template
    for talk in talks:
        assert run_go(template, talk) == expected(turns, talk)


def of_format(folder: Path, form: Format, **engine: str) -> Artifact:
    """The fake artifact in this format."""
    made = fake_artifact(folder)
    name = {"gguf": "model.gguf", "onnx": "genai_config.json", "executorch": "model.pte"}[form]
    (folder / name).write_text("{}")
    if form == "onnx":
        (folder / "model.onnx").write_text("")
    more = [name, "model.onnx"] if form == "onnx" else [name]
    config = {"config.json": describe_files(folder, ["tokenizer.json"])["tokenizer.json"]}
    manifest = dataclasses.replace(
        made.manifest,
        format=form,
        engine={**made.manifest.engine, **engine},
        files={**made.manifest.files, **describe_files(folder, more)},
        source=dataclasses.replace(made.manifest.source, name="me/Phi-3 tuned", files=config),
    )
    return seal(folder, manifest)


def bundle(artifact: Artifact, out: Path, kind: str, *options: str) -> Result:
    return CliRunner().invoke(main, ["bundle", str(artifact.folder), str(out), "--for", kind, *options])


def test_ollamas_folder(tmp_path: Path) -> None:
    artifact = of_format(tmp_path / "a", "gguf", tokenizer="llama")
    done = bundle(artifact, tmp_path / "out", "ollama")
    assert done.exit_code == 0, done.output
    commands = read_modelfile((tmp_path / "out/Modelfile").read_text(encoding="utf-8"))
    (model, template, *parameters) = commands
    assert model == ("FROM", "", "./model/model.gguf") and (tmp_path / "out/model/model.gguf").is_file()
    assert template[0] == "TEMPLATE" and "<|assistant|>" in run_go(template[2], TALKS[3])
    assert parameters == [
        ("PARAMETER", "stop", "<|endoftext|>"),
        ("PARAMETER", "stop", "<|end|>"),
        ("PARAMETER", "num_ctx", str(artifact.manifest.context_tokens)),
    ]
    assert open_artifact(tmp_path / "out/model").manifest == artifact.manifest


@pytest.mark.parametrize(
    ("form", "kind", "options", "message"),
    [
        ("gguf", "ollama", [], "no tokenizer that splits text like this model's"),
        ("onnx", "ollama", [], "ships the format gguf"),
        ("gguf", "foundry", [], "ships the format onnx"),
        ("gguf", "foundry", ["--license", "mit"], "--license is for --for hub"),
        ("gguf", "hub", [], "give --checkpoint FOLDER"),
        ("gguf", "hub", ["--checkpoint", "tiny"], "config.json differs"),
        ("gguf", "hub", ["--checkpoint", "tiny", "--push", "me"], "give owner/name"),
    ],
)
def test_what_is_refused(form: Format, kind: str, options: list[str], message: str, tmp_path: Path) -> None:
    done = bundle(of_format(tmp_path / "a", form), tmp_path / "out", kind, *options)
    assert done.exit_code == 2 and message in done.output, done.output
    assert not (tmp_path / "out").exists()


def test_foundrys_folder(tmp_path: Path) -> None:
    artifact = of_format(tmp_path / "a", "onnx")
    done = bundle(artifact, tmp_path / "out", "foundry")
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "out/inference_model.json").read_text(encoding="utf-8"))
    assert content["Name"] == "Phi-3-tuned-cpu-fp32"
    assert content["PromptTemplate"]["prompt"].count("{Content}") == 1
    assert (tmp_path / "out/genai_config.json").is_file() and (tmp_path / "out/model.onnx").is_file()
    assert prompt_template(PHI3) == {
        "system": "<|system|>\n{Content}<|end|>\n",
        "user": "<|user|>\n{Content}<|end|>\n",
        "assistant": "<|assistant|>\n{Content}<|end|>\n",
        "prompt": "<|user|>\n{Content}<|end|>\n<|assistant|>\n",
    }
    assert prompt_template(ODD) == {"assistant": "{Content}", "prompt": ODD.open_user + "{Content}" + ODD.to_answer}


def test_the_hubs_folder(tiny_onnx: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard
    from transformers import AutoConfig, AutoTokenizer

    out = tmp_path / "out"
    done = bundle(open_artifact(tiny_onnx), out, "hub", "--license", "mit")
    assert done.exit_code == 0, done.output
    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict() | {"license": "mit", "library_name": "onnxruntime-genai"} == card.data.to_dict()
    loss = open_artifact(tiny_onnx).manifest.loss
    assert f"{loss.mean_kl:.4f}" in card.text
    assert AutoConfig.from_pretrained(out).model_type == "phi3"
    assert AutoTokenizer.from_pretrained(out).encode("lamp")
    assert open_artifact(out).manifest == open_artifact(tiny_onnx).manifest


def test_a_push_to_the_hub(tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "tiny"
    shutil.copytree(Path(__file__).parent.parent / "export" / "tiny", checkpoint)
    (checkpoint / "README.md").write_text("---\nlicense: apache-2.0\nlicense_link: https://example.com\n---\n")
    out, options = tmp_path / "out", ["--checkpoint", str(checkpoint), "--push", "me/tiny-int4"]
    with FakeHub({}) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_fake")
        done = bundle(open_artifact(tiny_onnx), out, "hub", *options)
    assert done.exit_code == 0, done.output
    assert f"{hub.endpoint}/me/tiny-int4" in done.output
    assert hub.uploaded["me/tiny-int4"] == {path.name: path.read_bytes() for path in out.iterdir()}
    assert "license: apache-2.0" in (out / "README.md").read_text(encoding="utf-8")


def test_a_hub_that_refuses(tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub({}, gated=True) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_fake")
        done = bundle(open_artifact(tiny_onnx), tmp_path / "out", "hub", "--push", "me/tiny")
    assert done.exit_code == 2 and "me/tiny: cannot be uploaded" in done.output and "hf upload" in done.output
    assert (tmp_path / "out" / "README.md").is_file()
