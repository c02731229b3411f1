"""`phi-edge report`: the markdown table, the JSON, and the page, which is opened in a real browser."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from devices.measure.measurement import Measurement
from devices.report.numbers import digits, show
from fakes.measurement import fake_measurement
from phi_edge.main import main
from runtimes.system.conditions import Conditions

Golden = Callable[[str, str], None]
PLOTS = {"plot-bars", "plot-latency", "plot-ecdf", "plot-memory"}
EVIL = "<script>alert(1)</script>|`$x$`*\"'&\nnew"


def report(folder: Path, measurements: list[Measurement], *options: str) -> Result:
    files = []
    for number, measurement in enumerate(measurements):
        (folder / f"{number}.json").write_text(measurement.to_json())
        files.append(str(folder / f"{number}.json"))
    result = CliRunner().invoke(main, ["report", *files, *options])
    assert result.exit_code == 0, result.output
    return result


def page(folder: Path, measurements: list[Measurement]) -> Path:
    report(folder, measurements, "--html", str(folder / "r.html"))
    return folder / "r.html"


def two() -> list[Measurement]:
    return [
        fake_measurement(),
        fake_measurement(name="tiny-android", format="executorch", target="android", gap_s=0.02),
    ]


def test_markdown(tmp_path: Path, golden: Golden) -> None:
    golden("report.md", report(tmp_path, two()).stdout)


def test_markdown_says_what_was_not_measured_and_what_is_invalid(tmp_path: Path) -> None:
    text = report(tmp_path, [fake_measurement(), fake_measurement(peak_bytes=None)]).stdout
    assert re.search(r"\| Peak memory \| 100 MB .*\| not measured \|", text)


def test_json_to_a_file(tmp_path: Path) -> None:
    assert report(tmp_path, two(), "--json", str(tmp_path / "r.json")).stdout == ""
    assert len(json.loads((tmp_path / "r.json").read_text())["measurements"]) == 2


def test_a_hostile_name_stays_text_in_markdown(tmp_path: Path) -> None:
    text = report(tmp_path, [fake_measurement(name=EVIL)]).stdout
    header = text.splitlines()[0]
    assert "<script>" not in text
    assert len(re.findall(r"(?<!\\)\|", header)) == 3


def test_json_for_scripts(tmp_path: Path) -> None:
    content = json.loads(report(tmp_path, two(), "--json", "-").stdout)
    first, second = content["measurements"]
    assert first["valid"] is True
    assert second["metrics"]["decode_tokens_per_s"]["ratio_to_first"] == pytest.approx(0.5)
    assert first["metrics"]["peak_memory_bytes"]["value"] == 100_000_000


class Elements(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_from_anywhere(tmp_path: Path) -> None:
    text = page(tmp_path, two()).read_text()
    elements = Elements(text)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in elements.tags} - {"link"}
    for tag, attributes in elements.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "http://" not in text and "https://" not in text and "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_page_has_every_plot_and_explains_every_metric(tmp_path: Path) -> None:
    elements = Elements(page(tmp_path, two()).read_text())
    assert {attributes["id"] for tag, attributes in elements.tags if tag == "figure"} == PLOTS
    assert "From the acceptance of the request to the first sampled token" in elements.text
    assert "tiny-android · executorch · local" in elements.text


def test_the_heat_is_drawn_where_each_repetition_was_looked_at(tmp_path: Path) -> None:
    first = fake_measurement()

    def seen(minute: int) -> Conditions:
        return dataclasses.replace(first.before, at=f"2026-01-01T00:{minute:02}:00+00:00", processor_c=50.0 + minute)

    watched = [
        dataclasses.replace(each, entered=seen(2 * number), left=seen(2 * number + 1))
        for number, each in enumerate(first.repetitions)
    ]
    hot = dataclasses.replace(first, repetitions=watched)
    elements = Elements(page(tmp_path, [hot, first]).read_text())
    assert {attributes["id"] for tag, attributes in elements.tags if tag == "figure"} == {*PLOTS, "plot-heat"}
    assert "the warmest sensor" in elements.text and "the fastest core" in elements.text


def test_a_hostile_name_stays_text_on_the_page(tmp_path: Path) -> None:
    elements = Elements(page(tmp_path, [fake_measurement(name=EVIL), fake_measurement()]).read_text())
    assert "script" not in {tag for tag, _ in elements.tags}
    assert "<script>alert(1)</script>" in elements.text


def test_ids_are_unique_though_drawings_are_inline(tmp_path: Path) -> None:
    elements = Elements(page(tmp_path, two()).read_text())
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("measurement", [
    fake_measurement(repetitions=1), fake_measurement(generate_tokens=1), fake_measurement(generate_tokens=2),
    fake_measurement(peak_bytes=None), fake_measurement(peak_bytes=4_000_000_000),
])  # fmt: skip
def test_a_page_of_a_scanty_measurement(tmp_path: Path, measurement: Measurement) -> None:
    assert "Phi Edge report" in page(tmp_path, [measurement]).read_text()


def test_the_page_is_the_same_for_the_same_files(tmp_path: Path) -> None:
    assert page(tmp_path, two()).read_bytes() == page(tmp_path, two()).read_bytes()


@pytest.mark.chromium
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium: apt-get install --no-install-recommends chromium")
    file = page(tmp_path, [*two(), fake_measurement(name=EVIL)])
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0",
               "--dump-dom", file.as_uri()]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    # Chromium logs what a page's console says, a refused request among it, as CONSOLE.
    assert "CONSOLE" not in shown.stderr
    elements = Elements(shown.stdout)
    assert {attributes["id"] for tag, attributes in elements.tags if tag == "figure"} == PLOTS
    assert sum(tag == "svg" for tag, _ in elements.tags) == len(PLOTS)
    assert "script" not in {tag for tag, _ in elements.tags}


def test_a_file_that_is_no_measurement(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    result = CliRunner().invoke(main, ["report", str(tmp_path / "x.json")])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (None, "s", "not measured"),
        (0.0, "bytes", "0 B"),
        (0.0123, "s", "12.3 ms"),
        (0.99996, "s", "1,000 ms"),
        (1.0, "s", "1.00 s"),
        (0.0000005, "s", "0.500 µs"),
        (2_150_000_000, "bytes", "2.15 GB"),
        (56102.4, "tokens/s", "56,102 tokens/s"),
    ],
)
def test_numbers_for_people(value: float | None, unit: str, shown: str) -> None:
    assert show(value, unit) == shown
    assert digits(9.999) == "10.0"
