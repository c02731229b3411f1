"""The dashboard: one HTML file that loads nothing. Its policy allows its own style and script alone, by hash."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from devices.dashboard.data import content_of
from devices.history.figures import FileFigures

PARTS = Path(__file__).parent / "page"
SCRIPTS = ("numbers.js", "elements.js", "model.js", "attention.js", "pivot.js", "chart.js", "beside.js", "main.js")


def to_page(files: Sequence[FileFigures], title: str) -> str:
    """The page. Texts are in its data, where `<` is written as an escape; the script shows them as text."""
    style = (PARTS / "dashboard.css").read_text(encoding="utf-8")
    parts = [(PARTS / name).read_text(encoding="utf-8") for name in SCRIPTS]
    script = '"use strict";\n' + "\n".join(parts)
    data = json.dumps(content_of(files), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PARTS), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("dashboard.html.j2").render(
        title=title,
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        data=Markup(data),
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
