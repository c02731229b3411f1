"""`phi-edge bundle`: what an app with an artifact ships, or another program's folder for it."""

from __future__ import annotations

from pathlib import Path

import click

from phi_edge.errors import UserError
from phi_edge.files import FOLDER
from phi_edge.habits import CHOICES
from phi_edge.terminal import echo
from phi_edge.verb import Choice, Verb
from runtimes.bundle.write import KINDS


@click.command(
    "bundle",
    cls=Verb,
    examples=[
        "phi-edge bundle my-artifact my-app --for android",
        "phi-edge bundle my-web my-site --for web --also my-web-float32",
        "phi-edge bundle my-gguf my-ollama --for ollama",
        "phi-edge bundle my-artifact my-folder --for hub --checkpoint ./my-finetuned-phi3 --push me/phi-3-int4",
    ],
    groups={"For the hub": ["checkpoint", "licence", "push"]},
)
@click.argument("artifact", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("--for", "kind", type=Choice(list(KINDS), CHOICES["--for"]), required=True,
              help="The kind of app, or the other program.")  # fmt: skip
@click.option(
    "--libraries",
    type=FOLDER,
    metavar="FOLDER",
    show_default="they are downloaded",
    help="For web: a folder with the JavaScript packages, as `npm pack` downloads them.",
)
@click.option(
    "--also",
    type=FOLDER,
    metavar="ARTIFACT",
    show_default="one model",
    help="For web: the same model with the other --activations. The page takes float16 where the graphics adapter has "
    "it, else float32.",
)
@click.option("--checkpoint", metavar="CHECKPOINT", show_default="the hub's, if it was exported from there",
              help="What ARTIFACT was exported from: its config.json is added.")  # fmt: skip
@click.option("--license", "licence", metavar="ID", show_default="that of the checkpoint's card",
              help="The hub's name for the licence, such as mit.")  # fmt: skip
@click.option("--push", metavar="OWNER/NAME", show_default="nothing is uploaded",
              help="Also upload OUT to this repository of Hugging Face's hub; a new one is private.")  # fmt: skip
def bundle_command(
    artifact: Path,
    out: Path,
    kind: str,
    libraries: Path | None,
    also: Path | None,
    checkpoint: str | None,
    licence: str | None,
    push: str | None,
) -> None:
    """Write a folder with everything an app, or another program, needs to run ARTIFACT.

    The new folder OUT gets the model's files, source code that runs them (Kotlin for Android, C# for Windows, systemd
    units for a Raspberry Pi, a static page with a JavaScript module for the web) and a README. For ollama it has a
    Modelfile, for foundry what Foundry Local reads, and for hub a model card with the manifest's figures. Nothing is
    compiled or installed.
    """
    from export.artifact import open_artifact
    from runtimes.bundle.write import write_bundle

    given = {"--checkpoint": checkpoint, "--license": licence, "--push": push}
    if kind != "hub" and (wrong := [flag for flag, value in given.items() if value is not None]):
        raise UserError(f"{wrong[0]} is for --for hub: leave it out")
    if also is not None and KINDS[kind].models is None:
        raise UserError("--also is for --for web: leave it out")
    opened = open_artifact(artifact)
    other = None if also is None else open_artifact(also)
    more: dict[str, bytes] = {}
    if kind == "hub":
        from phi_edge.verbs.artifact.hub import hub_files
        from runtimes.bundle.push import check_repository

        if push is not None:
            check_repository(push)
        more = hub_files(opened, checkpoint, licence)
    write_bundle(opened, out, kind, libraries, more, other)
    echo(str(out))
    if push is not None:
        from runtimes.bundle.push import push_folder

        echo(push_folder(out, push, f"{opened.manifest.source.name}, {opened.manifest.scheme.name}, by phi-edge"))
