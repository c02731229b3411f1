"""`phi-edge bundle`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("bundle")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--for", "kind", type=click.Choice(["android", "windows", "raspberry-pi"]), required=True, help="The kind of app."
)
def bundle_command(artifact: Path, out: Path, kind: str) -> None:
    """Lay out in the new folder OUT what an app with ARTIFACT ships: the model's files, source code, a README."""
    from export.artifact import open_artifact
    from runtimes.bundle.write import write_bundle

    write_bundle(open_artifact(artifact), out, kind)
    click.echo(str(out))
