"""`phi-edge bundle`: what an app with an artifact ships."""

from __future__ import annotations

from pathlib import Path

import click

from phi_edge.files import FOLDER
from phi_edge.terminal import echo
from phi_edge.verb import Choice, Verb
from runtimes.bundle.write import KINDS


@click.command("bundle", cls=Verb, examples=["phi-edge bundle my-artifact my-app --for android"])
@click.argument("artifact", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("--for", "kind", type=Choice(list(KINDS)), required=True, help="The kind of app.")
@click.option(
    "--libraries",
    type=FOLDER,
    metavar="FOLDER",
    show_default="they are downloaded",
    help="For web: a folder with the JavaScript packages, as `npm pack` downloads them.",
)
def bundle_command(artifact: Path, out: Path, kind: str, libraries: Path | None) -> None:
    """Write a folder with everything an app needs to run ARTIFACT.

    The new folder OUT gets the model's files, source code that runs them (Kotlin for Android, C# for Windows, systemd
    units for a Raspberry Pi, a static page with a JavaScript module for the web) and a README. Nothing is compiled or
    installed.
    """
    from export.artifact import open_artifact
    from runtimes.bundle.write import write_bundle

    write_bundle(open_artifact(artifact), out, kind, libraries)
    echo(str(out))
