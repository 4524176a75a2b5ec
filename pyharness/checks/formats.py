# SPDX-License-Identifier: GPL-2.0-only
"""The results of checks as other programs read them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from urllib.parse import quote

from pyharness import __version__
from pyharness.checks.finding import Finding
from pyharness.checks.run import Result, Verdict

_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def lines_of(result: Result) -> list[str]:
    """A result for people: its line, and one for each finding or missing tool."""
    took = "cached" if result.remembered else f"{result.seconds:.1f} s"
    head = f"{result.verdict.value:4}  {result.check.name:16} {result.check.summary}"
    if result.verdict is not Verdict.SKIP:
        head += f" ({took})"
    return [head, *(f"      {line}" for line in (*map(str, result.findings), *result.missing))]


def as_json(results: Sequence[Result]) -> str:
    """A list with an object for each check."""
    rows = [
        {
            "check": result.check.name,
            "summary": result.check.summary,
            "verdict": result.verdict.value,
            "seconds": round(result.seconds, 3),
            "cached": result.remembered,
            "findings": [asdict(finding) for finding in result.findings],
            "missing": list(result.missing),
        }
        for result in results
    ]
    return json.dumps(rows, indent=2)


def as_sarif(results: Sequence[Result]) -> str:
    """SARIF 2.1.0: each check is a rule, and a skip a notification."""
    rules = [
        {"id": result.check.name, "name": result.check.name, "shortDescription": {"text": result.check.summary}}
        for result in results
    ]
    skipped = [
        {"level": "warning", "message": {"text": f"{result.check.name} was skipped: {'; '.join(result.missing)}"}}
        for result in results
        if result.verdict is Verdict.SKIP
    ]
    run = {
        "tool": {"driver": {"name": "pyharness check", "version": __version__, "rules": rules}},
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": skipped}],
        "results": [
            _sarif_result(index, result.check.name, finding)
            for index, result in enumerate(results)
            for finding in result.findings
        ],
    }
    return json.dumps({"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _sarif_result(index: int, check: str, finding: Finding) -> dict[str, object]:
    # A place in the tree is demanded of every result: a finding about a whole file is shown at its first line.
    place = {"artifactLocation": {"uri": quote(finding.file)}, "region": {"startLine": finding.line or 1}}
    return {
        "ruleId": check,
        "ruleIndex": index,
        "level": "error",
        "message": {"text": _message(finding)},
        "locations": [{"physicalLocation": place}],
    }


def as_junit(results: Sequence[Result]) -> str:
    """JUnit XML: each check is a test case."""
    suite = ET.Element(
        "testsuite",
        name="pyharness check",
        tests=str(len(results)),
        failures=str(sum(result.verdict is Verdict.FAIL for result in results)),
        errors="0",
        skipped=str(sum(result.verdict is Verdict.SKIP for result in results)),
        time=f"{sum(result.seconds for result in results):.3f}",
    )
    for result in results:
        case = ET.SubElement(suite, "testcase", classname="check", name=result.check.name, time=f"{result.seconds:.3f}")
        if result.verdict is Verdict.FAIL:
            failure = ET.SubElement(case, "failure", message=f"{len(result.findings)} findings", type="finding")
            failure.text = "\n".join(map(str, result.findings))
        elif result.verdict is Verdict.SKIP:
            ET.SubElement(case, "skipped", message="; ".join(result.missing))
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True)


def as_github(results: Sequence[Result]) -> str:
    """Workflow commands that annotate the lines of a change; skips are warnings."""
    return "\n".join(_annotations(results))


def _annotations(results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        for finding in result.findings:
            place = f"file={_property(finding.file)},line={finding.line or 1}"
            yield f"::error {place},title={_property(result.check.name)}::{_data(_message(finding))}"
        if result.missing:
            yield f"::warning title={_property(result.check.name)}::{_data('skipped: ' + '; '.join(result.missing))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _message(finding: Finding) -> str:
    return f"{finding.message} [{finding.rule}]" if finding.rule else finding.message


FORMATS: dict[str, Callable[[Sequence[Result]], str]] = {
    "json": as_json,
    "sarif": as_sarif,
    "junit": as_junit,
    "github": as_github,
}
"""Documents that are complete when all checks have ended; `text` is printed as they end."""
