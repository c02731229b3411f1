"""docs/cli.md is the help of every verb: write it again with `make docs`. A test compares the page with the help."""

from __future__ import annotations

from pathlib import Path

import click

from phi_edge.main import VERBS, main

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
WIDTH = 100
HEAD = """\
# The command line

This page is the output of `phi-edge --help` and of `phi-edge VERB --help`. `make docs` writes it again.

Completion of verbs, options, targets, schemes and device names (for zsh and fish put their name in the place of bash):

```console
$ eval "$(_PHI_EDGE_COMPLETE=bash_source phi-edge)"
```
"""


def page() -> str:
    """The whole page."""
    with context(main, "phi-edge", None) as group:
        parts = [HEAD, block("phi-edge", main, group)]
        for verb in VERBS:
            command = main.get_command(group, verb)
            assert command is not None
            with context(command, verb, group) as ctx:
                parts.append(block(f"phi-edge {verb}", command, ctx))
    return "\n".join(parts)


def context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    """As on a terminal of a fixed width."""
    return click.Context(
        command, info_name=name, parent=parent, terminal_width=WIDTH, **(command.context_settings if not parent else {})
    )


def block(title: str, command: click.Command, ctx: click.Context) -> str:
    """One heading with one help."""
    return f"## {title}\n\n```text\n{command.get_help(ctx).rstrip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
