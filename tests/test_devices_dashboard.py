"""What is made of a history: change points, the kept figures, Prometheus' text, and the page, in a real browser."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from prometheus_client.parser import text_string_to_metric_families

from devices.history.changes import change_points
from devices.measure.measurement import DeviceFacts, Measurement
from fakes.chromium import chromium_page
from fakes.measurement import fake_measurement
from fakes.score import fake_score
from phi_edge.main import main

EVIL = "</script><img src=x onerror=alert(1)>&'\""
NIGHTS = 12
FIRST = datetime(2026, 11, 12, 2, 0, tzinfo=UTC)


def measured(name: str, device: str, night: int, gap_s: float = 0.01, version: str = "1.31.0") -> Measurement:
    return dataclasses.replace(
        fake_measurement(name=name, gap_s=gap_s, repetitions=2),
        created_at=(FIRST + timedelta(days=night)).isoformat(),
        device=DeviceFacts(name=device, transport="ssh"),
        versions={"onnxruntime": version},
    )


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve nights: an update makes phi3 slower on the pi5 from night 8 on, and the phone is away since night 9."""
    folder = tmp_path_factory.mktemp("lab")
    files = folder / "files"
    files.mkdir()
    made = [measured(EVIL, "pi5", night) for night in range(NIGHTS)]
    made += [measured("phi3", "phone", night) for night in range(9)]
    for night in range(NIGHTS):
        new = night >= 8
        made.append(measured("phi3", "pi5", night, 0.012 if new else 0.01, "1.32.0" if new else "1.31.0"))
    swapping = dataclasses.replace(made[NIGHTS - 1].repetitions[0].run.memory, swap_bytes=1_000_000)
    first = made[NIGHTS - 1].repetitions[0]
    spoilt = dataclasses.replace(first, run=dataclasses.replace(first.run, memory=swapping))
    made[NIGHTS - 1] = dataclasses.replace(made[NIGHTS - 1], repetitions=[spoilt, made[NIGHTS - 1].repetitions[1]])
    for number, measurement in enumerate(made):
        (files / f"{number}.json").write_text(measurement.to_json())
    score = dataclasses.replace(fake_score(made[-1]), device=made[-1].device, created_at=made[-1].created_at)
    (files / "score.json").write_text(score.to_json())
    assert run("history", folder / "store", files).exit_code == 0
    return folder / "store"


def noisy(levels: list[float], nights: int = 20) -> list[float]:
    """Nights at each level, which scatter by 1 % and have an outlier each."""
    scatter = [0.0, 0.011, -0.008, 0.004, -0.012, 0.009, -0.003, 0.01, -0.01, 0.002]
    return [
        level * (1 + scatter[(night * 7 + number) % 10]) * (1.3 if night == 9 else 1.0)
        for number, level in enumerate(levels)
        for night in range(nights)
    ]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (noisy([10.0, 11.0]), [(20, 1.1)]),
        (noisy([10.0, 9.5, 10.5]), [(20, 0.95), (40, 1.105)]),
        (noisy([10.0]), []),
        ([10.0] * 9 + [12.0] * 2, []),  # two nights may be chance
        ([10.0] * 9 + [12.0] * 3, [(9, 1.2)]),
        ([100.0] * 20 + [100.5] * 20, []),  # certain, and too small to look at
        ([1.0, 2.0], []),
        ([0.0] * 10 + [1.0] * 10, []),
    ],
    ids=["a step", "down and up", "outliers", "two nights", "three nights", "half a percent", "short", "zeros"],
)
def test_change_points(values: list[float], found: list[tuple[int, float]]) -> None:
    seen = change_points(values)
    assert [each.index for each in seen] == [index for index, _ in found]
    assert [each.ratio for each in seen] == pytest.approx([ratio for _, ratio in found], rel=0.01)


def test_the_overview_and_sql_say_since_when(store: Path) -> None:
    lines = run("history", store).stdout.splitlines()
    assert [line for line in lines if re.match("phi3 +pi5 +32 +itl_p50_s .*  [+]20.0% since 2026-11-20$", line)]
    assert [line for line in lines if re.match("phi3 +phone +32 +itl_p50_s .*  -$", line)]
    query = "SELECT created_at[:10], round(ratio, 2) FROM changes WHERE metric = 'itl_p90_s'"
    assert run("history", store, "--sql", query).stdout.splitlines()[1].split() == ["2026-11-20", "1.2"]


def test_nothing_was_added_yet_is_one_line_and_makes_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path / "typo", tmp_path):
        result = run("history", folder, "--csv", tmp_path / "x.csv")
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert f"{folder}: is no history yet; add measurements: phi-edge history {folder} FILES" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_newest_figures_for_prometheus(store: Path, tmp_path: Path) -> None:
    assert run("history", store, "--prometheus", tmp_path / "lab.prom").stdout == ""
    families = text_string_to_metric_families((tmp_path / "lab.prom").read_text())
    seen = {
        (sample.name, sample.labels["artifact"], sample.labels["device"], sample.labels["prompt_tokens"]): sample
        for family in families
        for sample in family.samples
    }
    assert seen["phi_edge_itl_p50_seconds", "phi3", "pi5", "32"].value == pytest.approx(0.0132, rel=0.05)
    assert seen["phi_edge_kl", "phi3", "pi5", ""].value > 0
    newest = {key[1:3]: sample.value for key, sample in seen.items() if key[0] == "phi_edge_newest_valid" and key[3]}
    assert newest == {("phi3", "pi5"): 1, ("phi3", "phone"): 1, (EVIL, "pi5"): 0}
    measured = seen["phi_edge_measured_timestamp_seconds", EVIL, "pi5", "32"]
    assert measured.value == (FIRST + timedelta(days=NIGHTS - 2)).timestamp() and measured.timestamp is None


def page(store: Path, out: Path) -> str:
    result = run("history", store, "--html", out, "--title", f"Lab {EVIL}")
    assert (result.exit_code, result.stdout) == (0, ""), result.output
    return out.read_text()


def cut(kept: Path) -> None:
    kept.write_bytes(kept.read_bytes()[:-100])


def forget(kept: Path) -> None:
    kept.unlink()


def scribble(kept: Path) -> None:
    lines = kept.read_text().splitlines()
    other = [lines[1].replace('"ttft_s"', '"speed"'), lines[2].replace('"metrics": {', '"metrics": 1, "more": {')]
    kept.write_text("\n".join(["[]", '{"file": 1}', "null", *other, *lines[3:]]))


@pytest.mark.parametrize("spoil", [cut, forget, scribble])
def test_the_kept_figures_are_a_copy(store: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    before = page(store, tmp_path / "lab.html")
    (kept,) = store.glob("figures/*/*.ndjson")
    spoil(kept)
    assert page(store, tmp_path / "lab.html") == before


def test_the_page_needs_nothing_from_anywhere(store: Path, tmp_path: Path) -> None:
    text = page(store, tmp_path / "lab.html")
    assert "http://www.w3.org/2000/svg" in text and text.count("://") == 1
    assert "default-src 'none'; style-src 'sha256-" in text and "unsafe" not in text
    assert text.count("<script") == text.count("</script>") == 2 and "<img" not in text
    data = json.loads(re.findall('id="data">(.*)</script>', text)[0])
    assert set(data["artifacts"]) == {"phi3", EVIL}


@pytest.mark.chromium
def test_the_page_in_a_browser(store: Path, tmp_path: Path) -> None:
    page(store, tmp_path / "lab.html")
    with chromium_page(tmp_path / "profile") as browser:
        browser.open((tmp_path / "lab.html").as_uri())
        browser.wait_for("document.querySelectorAll('#pivot td').length === 4")

        def text(selector: str) -> str:
            return str(browser.evaluate(f"document.querySelector({json.dumps(selector)}).textContent"))

        # What is new, and the view that begins with it: the change on the pi5.
        news = text("#news")
        assert re.search(r"phi3 on pi5: .*Decode .1[67].%.*since 20 Nov: onnxruntime 1.32.0", news)
        assert f"{EVIL} on pi5: invalid on 23 Nov" in news and "phi3 on phone: not measured for 3 days" in news
        assert text("#time-title") == "Decode on pi5" and "17" in text("#time svg text.bad")
        assert browser.evaluate("document.querySelectorAll('#time .a .dot').length") == NIGHTS
        assert browser.evaluate("document.querySelectorAll('#time .b .cross').length") == 1
        assert "not measured" in text("#pivot")  # of EVIL on the phone
        # Another cell, another metric, and a link that leads back there.
        browser.evaluate("document.querySelector('#pivot button[aria-label^=\"phi3 on phone\"]').click()")
        assert text("#time-title") == "Decode on phone"
        browser.evaluate(
            "byId('metric').value = 'kl'; byId('metric').dispatchEvent(new Event('change', {bubbles: true}))"
        )
        assert browser.evaluate("document.querySelectorAll('#pivot .cell').length") == 1
        link = str(browser.evaluate("location.href"))
        assert "metric=kl" in link and "device=phone" in link
        assert text("#time") == "Not measured."  # a score of the pi5
        assert "B / A" in text("#figures")
        browser.open("about:blank")
        browser.open(link)
        browser.wait_for("document.querySelector('#time-title')?.innerText === 'KL on phone'")
        assert browser.console == []
