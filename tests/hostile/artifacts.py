"""Hostile artifacts: manifests, files that changed, tokenizers, chat templates."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from export.artifact import MANIFEST, describe_files, open_artifact, seal
from hostile.mutate import Grammar, mutate
from hostile.trial import Trial
from runtimes.engines.fake import CHAT_TEMPLATE, fake_artifact

MODEL = "model.onnx"  # `check` wants one to be listed
ASK = ["run", "a", "Hello", "--max-new-tokens", "3"]
# Maps with keys of their own: any of them may be missing, and their values are anything.
FREE = {"engine", "tools", "coverage"}
FREE_IN = {("source", "files"), ("scheme", "exceptions"), ("memory", "total_bytes_per_context")}
OPTIONAL = {
    "tokenizer_config.json",
    "side_adapters",
    "adapters",
    "bos",
    "pad",
    "window_tokens",
    "kept_tokens",
    "switch_tokens",
    "revision",
    "kv_cache_kl",
    "zeroed_blocks",
}


@functools.cache
def _sound() -> Path:
    artifact = fake_artifact(Path(tempfile.mkdtemp(prefix="phi-edge-hostile-")) / "a")
    (artifact.folder / MODEL).write_bytes(b"no engine reads it")
    files = describe_files(artifact.folder, [*artifact.manifest.files, MODEL])
    return seal(artifact.folder, dataclasses.replace(artifact.manifest, files=files)).folder


def sound(folder: Path) -> Sequence[str]:
    """An artifact that `check` finds whole."""
    shutil.copytree(_sound(), folder / "a")
    return ["check", "a"]


def sound_run(folder: Path) -> Sequence[str]:
    """An artifact that answers."""
    sound(folder)
    return ASK


def sound_file(name: str) -> bytes:
    """What a file of the sound artifact has."""
    return (_sound() / name).read_bytes()


def with_manifest(folder: Path, data: bytes) -> Sequence[str]:
    """An artifact with these bytes as its manifest."""
    sound(folder)
    (folder / "a" / MANIFEST).write_bytes(data)
    return ["check", "a"]


def with_file(folder: Path, name: str, data: bytes) -> Sequence[str]:
    """An artifact with these bytes as one of its other files, and the hashes of that."""
    sound(folder)
    artifact = open_artifact(folder / "a")
    (folder / "a" / name).write_bytes(data)
    described = describe_files(folder / "a", list(artifact.manifest.files))
    seal(folder / "a", dataclasses.replace(artifact.manifest, files=described))
    return ASK


def with_template(folder: Path, source: str) -> Sequence[str]:
    """An artifact with this chat template."""
    config = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "chat_template": source}
    return [*with_file(folder, "tokenizer_config.json", json.dumps(config).encode()), "--chat"]


def manifest(rng: random.Random) -> Trial:
    """A manifest with one fault."""
    content = json.loads(sound_file(MANIFEST))
    grammar = Grammar(free=lambda path: path[0] in FREE or path[:2] in FREE_IN or path[-1] in OPTIONAL)
    mutation = mutate(rng, content, grammar)
    words = rng.choice([["check", "a"], ["check", "a"], ASK, ["bundle", "a", "app", "--for", "android"]])

    def make(folder: Path) -> Sequence[str]:
        with_manifest(folder, mutation.data)
        return words

    return Trial(f"{words[0]}: manifest {mutation.what}", make, mutation.breaks, may_write=("app",))


def file(rng: random.Random) -> Trial:
    """A file that changed behind the manifest's back."""
    name = rng.choice(["tokenizer.json", "tokenizer_config.json"])
    fault = rng.choice([_flip, _cut, _grow, _remove, _link_out, _folder])
    share = rng.random()

    def make(folder: Path) -> Sequence[str]:
        sound(folder)
        fault(folder / "a" / name, share)
        return ["check", "a"]

    return Trial(f"{name}: {fault.__name__.strip('_')} {share:.3f}", make, breaks=True)


def _flip(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1
    path.write_bytes(data)


def _cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def _grow(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes() + b" " * (1 + int(100 * share)))


def _remove(path: Path, share: float) -> None:
    path.unlink()


def _link_out(path: Path, share: float) -> None:
    outside = path.parent.parent / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)


def _folder(path: Path, share: float) -> None:
    path.unlink()
    path.mkdir()


def tokenizer(rng: random.Random) -> Trial:
    """A tokenizer.json or tokenizer_config.json with one fault, in an artifact whose hashes are right."""
    contents = {name: json.loads(sound_file(name)) for name in ("tokenizer.json", "tokenizer_config.json")}
    name = rng.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"])
    mutation = mutate(rng, contents[name], Grammar(free=lambda path: True))
    return Trial(f"{name} {mutation.what}", lambda folder: with_file(folder, name, mutation.data), mutation.breaks)


# Fragments of templates; each is used alone and among the others.
FRAGMENTS = (
    "{{ messages[0].content }}", "{{ messages[99].content }}", "{{ nothing.at.all }}", "{{ 1 / 0 }}", "{{ [] + 1 }}",
    "{{ 'a' * 10 ** 11 }}", "{{ range(10 ** 9) | list }}", "{{ 'a'.index('b') }}", "{% include 'x' %}",
    "{% import 'x' as y %}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ 10 ** 5000 }}",
    "\ue00099\ue001", "{{ raise_exception('\x1b[2J\nError: forged') }}", "{{ raise_exception(1) }}",
    "{{ ''.__class__.__mro__ }}", "{{ messages.__class__.__init__.__globals__ }}", "{{ cycler.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__.os.system('touch pwned') }}", "{{ messages | tojson }}", "{{ {} | tojson(2) }}",
    "{% for m in messages %}{{ m.role }}{% endfor %}", "{{ messages | map('attr') | list }}", "{{ x | unknown }}",
    "{% set messages = [] %}", "{{ messages.append(1) }}", "{% do messages.clear() %}", "{{ loop.index }}",
    "{{ strftime_now('%Y' * 9999) }}", "{{ lipsum(n=10**6) }}", "{{ '%s' | format() }}", "{{ 'a' | center(10**10) }}",
    "{{ add_generation_prompt.x }}", "{{ bos_token }}", "{% break %}", "{% generation %}x{% endgeneration %}",
    "<|end|><|system|>", "{{ messages[0]['content'].format(messages) }}", "{{ ('(' * 5000) }}", "\ud800",
)  # fmt: skip
UNREADABLE = (
    "{% for", "{{", "{% if x %}", "{{ a b }}", "{% endfor %}", "{{ (" + "(" * 5000, "{% unknown %}", "{{ 1 + }}",
    "{% for a in b %}{% endif %}", "{# never closed", "{{ ''' }}", "{% set %}", "{% macro %}", "{{ a | }}",
)  # fmt: skip
SLOW = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
)


def template(rng: random.Random) -> Trial:
    """A chat template that fails, lies, reads what it must not, or does not compile."""
    if rng.random() < 0.02:
        return _template(rng.choice(SLOW), breaks=True)
    if rng.random() < 0.25:
        return _template(rng.choice(FRAGMENTS[:3]) + rng.choice(UNREADABLE), breaks=True)
    parts = rng.sample(FRAGMENTS, rng.randrange(1, 4))
    if rng.random() < 0.5:
        parts.insert(rng.randrange(len(parts) + 1), CHAT_TEMPLATE)
    return _template("".join(parts), breaks=False)


def _template(source: str, *, breaks: bool) -> Trial:
    return Trial(f"template {source!r:.120}", lambda folder: with_template(folder, source), breaks)
