"""`phi-edge serve`: an artifact behind OpenAI's HTTP interface, here or through a device."""

from __future__ import annotations

import os
from pathlib import Path

import click

from export.artifact import open_artifact
from phi_edge.errors import UserError
from phi_edge.files import FOLDER
from phi_edge.lab import DeviceName, lab_option
from phi_edge.terminal import echo
from phi_edge.verb import Verb
from runtimes.intact import check_intact
from runtimes.registry import open_runtime
from runtimes.text.runtime import TextRuntime


@click.command(
    "serve",
    cls=Verb,
    extra="serve",
    examples=[
        "phi-edge serve my-artifact",
        "phi-edge serve my-artifact --device pi5",
        "phi-edge serve my-artifact --host 0.0.0.0 --api-key-env MY_KEY",
    ],
    groups={
        "Address": ("host", "port", "api_key_env", "name", "queue"),
        "Where": ("threads", "device", "lab"),
    },
)
@click.argument("artifact", type=FOLDER)
@click.option("--host", default="127.0.0.1", metavar="ADDRESS",
              help="The address to listen on. 0.0.0.0 is all of them: other machines can call.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=8080, metavar="N", help="0 takes a free one.")
@click.option("--api-key-env", metavar="NAME", show_default="no key",
              help="Ask for the API key that this environment variable has.")  # fmt: skip
@click.option("--name", metavar="TEXT", show_default="the folder's name",
              help="The model's name in requests.")  # fmt: skip
@click.option("--queue", type=click.IntRange(0), default=8, metavar="N",
              help="So many requests wait while one runs; the next is answered 429.")  # fmt: skip
@click.option("--threads", type=int, metavar="N", help="Threads of the engine.",
              show_default="all cores that the process may use; with --device, what the lab file says")  # fmt: skip
@click.option("--device", type=DeviceName(), help="A device of the lab file, which computes the answers.",
              show_default="this process")  # fmt: skip
@lab_option
def serve_command(
    artifact: Path,
    host: str,
    port: int,
    api_key_env: str | None,
    name: str | None,
    queue: int,
    threads: int | None,
    device: str | None,
    lab: Path | None,
) -> None:
    """Answer OpenAI's chat completions, completions and responses with ARTIFACT, until Ctrl-C.

    / is a chat page, /openapi.json the list of what is served, /health and /metrics are for machines.
    """
    from phi_edge.serve.app import Settings
    from phi_edge.serve.server import serve

    key = None if api_key_env is None else _key(api_key_env)
    runtime = _open(artifact, threads, device, lab)
    settings = Settings(model=name or artifact.resolve().name, queue_limit=queue, key=key)
    serve(runtime, settings, host, port)


def _open(artifact: Path, threads: int | None, device: str | None, lab: Path | None) -> TextRuntime:
    if device is None:
        opened = open_artifact(artifact)
        check_intact(opened)
        return open_runtime(opened, threads=threads)
    from devices.drivers.table import open_device_runtime

    return open_device_runtime(artifact, device, lab=lab, threads=threads, say=lambda what: echo(what, err=True))


def _key(variable: str) -> str:
    key = os.environ.get(variable, "")
    if not key.strip():
        raise UserError(f"--api-key-env {variable}: this environment variable is not set; set it to the key")
    if not all("!" <= char <= "~" for char in key):
        raise UserError(
            f"--api-key-env {variable}: the key has a space, a control character or one beyond ASCII, which clients "
            "write into a header each in their own way; take letters, digits and signs"
        )
    return key
