"""What is true of every wire to a device, checked by its tests: prompts, file names and lines arrive as they are or are
refused. The device's folders must be this machine's."""

from __future__ import annotations

from pathlib import Path

from devices.transports.host import Host
from devices.transports.remote_tokens import open_remote
from fakes.agent import fake_agent
from fakes.odd_text import odd_names, odd_texts
from runtimes import DoneEvent, GenerateRequest, Runtime, TokenEvent, open_runtime
from runtimes.engines.fake import fake_artifact, fake_opener
from runtimes.errors import TransportError
from runtimes.registry import text_runtime

COUNT = 2000
BATCH = 250
ROOT = Path(__file__).parents[2]


def check_prompts(host: Host, folder: Path) -> None:
    """2,000 texts, NULs among them, 100 in a prompt: the agent's model answers as this process's does. Its answer is a
    function of all ids of the prompt."""
    artifact = fake_artifact(folder / "artifact", context_tokens=16_384)
    source = open_remote(host.start(["env", f"PYTHONPATH={ROOT}", *fake_agent(), str(artifact.folder)]))
    there, here = text_runtime(artifact, source), open_runtime(artifact, engine=fake_opener())
    try:
        texts = odd_texts(COUNT, seed=6, nul=True)
        for start in range(0, COUNT, 100):
            prompt = "\n>".join(texts[start : start + 100])
            request = GenerateRequest(prompt=prompt, max_new_tokens=8, ignore_stop_ids=True)
            assert _answer(there, request) == _answer(here, request), prompt
    finally:
        there.close()
        here.close()


def check_names(host: Host, folder: Path) -> None:
    """2,000 file names, half of which are there: the device tells which."""
    names = odd_names(COUNT, seed=7)
    for name in names[::2]:
        (folder / name).touch()
    for start in range(0, COUNT, BATCH):
        assert host.files.exist(str(folder), names[start : start + BATCH]) == [True, False] * (BATCH // 2)


def check_half_a_line(host: Host) -> None:
    """An agent whose first line breaks off is an error that shows it."""
    begun = '{"event": "ready", "proto'
    try:
        open_remote(host.start(["printf", "%s", begun]))
    except TransportError as error:
        assert "the agent ended while loading" in str(error) or begun in str(error), error
    else:
        raise AssertionError("half a line was taken for a ready agent")


def _answer(runtime: Runtime, request: GenerateRequest) -> tuple[list[int], int]:
    *tokens, done = runtime.generate(request)
    assert isinstance(done, DoneEvent)
    return [token.id for token in tokens if isinstance(token, TokenEvent)], done.usage.prompt
