"""Findings for people and for CI systems: Markdown, JUnit, and annotations of GitHub Actions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from ci.export_check.finding import Finding, Outcome, exit_code
from devices.judge.junit import UNWRITABLE
from devices.measure.result import Result
from devices.report.table import escape_markdown, make_columns, to_markdown

VERDICTS = {0: "pass", 1: "a limit is missed", 2: "not judged"}
WORDS: Mapping[Outcome, str] = {
    "pass": "pass",
    "missed": "**missed**",
    "error": "**not done**",
    "note": "",
    "doubt": "doubtful",
}


def summary(check: str, findings: Sequence[Finding], results: Sequence[Result]) -> str:
    """The verdict, what failed or could not be done first, then all figures."""
    lines = [f"## Export check {escape_markdown(check)}: {VERDICTS[exit_code(findings)]}", ""]
    lines += ["| step | what | | seen |", "|---|---|---|---|"]
    for finding in sorted(findings, key=lambda each: each.outcome not in ("error", "missed")):
        said = escape_markdown(finding.said)
        lines.append(f"| {finding.step} | {escape_markdown(finding.name)} | {WORDS[finding.outcome]} | {said} |")
    table = ["", to_markdown(make_columns(results))] if results else [""]
    return "\n".join(lines + table)


def junit(check: str, findings: Sequence[Finding]) -> str:
    """A suite for each step, a case for each finding. Without times: the same findings give the same bytes."""
    root = ElementTree.Element("testsuites", name="check_export")
    for step, group in itertools.groupby(findings, key=lambda each: each.step):
        cases = list(group)
        suite = ElementTree.SubElement(root, "testsuite", {"name": step} | _counts(cases))
        for finding in cases:
            case = ElementTree.SubElement(suite, "testcase", classname=_clean(f"{check}.{step}"), name=finding.name)
            said = _clean(finding.said)
            if finding.outcome in ("missed", "error"):
                ElementTree.SubElement(case, "failure" if finding.outcome == "missed" else "error", message=said)
            else:
                ElementTree.SubElement(case, "system-out").text = said
    for key, value in _counts(findings).items():
        root.set(key, value)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _counts(findings: Sequence[Finding]) -> dict[str, str]:
    outcomes = [finding.outcome for finding in findings]
    counts = {"tests": len(outcomes), "failures": outcomes.count("missed"), "errors": outcomes.count("error")}
    return {key: str(value) for key, value in counts.items()}


def _clean(text: str) -> str:
    return UNWRITABLE.sub("\ufffd", text)


def workflow_commands(check: str, findings: Sequence[Finding]) -> list[str]:
    """Annotations of GitHub: an error for each failure, a warning for each doubt."""
    levels: dict[Outcome, str] = {"missed": "error", "error": "error", "doubt": "warning"}
    return [
        f"::{levels[each.outcome]} title={_property(f'{check}: {each.step}: {each.name}')}::{_data(each.said)}"
        for each in findings
        if each.outcome in levels
    ]


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
