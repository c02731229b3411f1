"""Judgements and comparisons as JUnit XML, the form that CI systems show. One test case per budgeted metric."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from devices.judge.compare import Comparison
from devices.judge.gate import Check, Judgement
from devices.judge.matched import Matched
from devices.measure.metrics import METRICS
from devices.report.numbers import show

# XML 1.0 has no way to write these, not even escaped.
UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(judgements: Sequence[Judgement], comparison: Comparison | Matched | None) -> str:
    """The XML document. Without times: the same verdict gives the same bytes."""
    root = ElementTree.Element("testsuites", name="phi-edge gate")
    for judgement in judgements:
        suite = ElementTree.SubElement(root, "testsuite", name=_clean(judgement.label))
        for check in judgement.checks:
            _check(suite, judgement, check)
        if judgement.fails_by_doubt:
            case = ElementTree.SubElement(suite, "testcase", classname=_clean(judgement.label), name="fail_on_doubt")
            ElementTree.SubElement(case, "failure", message=_clean(_doubtful(judgement)))
        if judgement.doubts:
            ElementTree.SubElement(suite, "system-out").text = _clean(_doubtful(judgement))
    if isinstance(comparison, Comparison):
        _comparison(ElementTree.SubElement(root, "testsuite", name="baseline"), comparison)
    elif comparison is not None:
        _matched(root, comparison)
    for suite in root:
        suite.set("tests", str(len(suite.findall("testcase"))))
        suite.set("failures", str(len(suite.findall("testcase/failure"))))
        suite.set("errors", str(len(suite.findall("testcase/error"))))
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _check(suite: ElementTree.Element, judgement: Judgement, check: Check) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=_clean(judgement.label), name=check.limit_name)
    if check.outcome == "invalid":
        ElementTree.SubElement(case, "error", message=_clean("invalid: " + "; ".join(judgement.problems)))
    elif check.outcome == "missed":
        unit = METRICS[check.metric].unit
        message = f"{check.metric}: seen {show(check.seen, unit)}, limit {show(check.limit, unit)}"
        exact = f"seen {check.seen!r}, limit {check.limit!r}"
        ElementTree.SubElement(case, "failure", message=_clean(message)).text = exact


def _doubtful(judgement: Judgement) -> str:
    return "doubtful: " + "; ".join(judgement.doubts)


def _matched(root: ElementTree.Element, matched: Matched) -> None:
    for label, each in matched.comparisons.items():
        _comparison(ElementTree.SubElement(root, "testsuite", name=_clean(f"baseline: {label}")), each)
    if matched.missing:
        suite = ElementTree.SubElement(root, "testsuite", name="missing")
        for text in matched.missing:
            label, _, reason = text.partition(": ")
            case = ElementTree.SubElement(suite, "testcase", classname="missing", name=_clean(label))
            ElementTree.SubElement(case, "failure", message=_clean(f"missing: {reason}"))


def _comparison(suite: ElementTree.Element, comparison: Comparison) -> None:
    for change in comparison.changes:
        case = ElementTree.SubElement(suite, "testcase", classname="baseline", name=change.metric)
        ratio = "none" if change.ratio is None else f"{change.ratio:.3f}"
        known = change.low is not None and change.high is not None
        bounds = f"interval {change.low:.3f} to {change.high:.3f}" if known else "no interval"
        message = f"{change.verdict}: ratio {ratio}, {bounds}"
        if change.verdict == "invalid":
            ElementTree.SubElement(case, "error", message=_clean("invalid: " + "; ".join(comparison.problems)))
        elif change.verdict == "regression":
            ElementTree.SubElement(case, "failure", message=_clean(message))
        else:
            ElementTree.SubElement(case, "system-out").text = _clean(message)


def _clean(text: str) -> str:
    return UNWRITABLE.sub("\ufffd", text)
