# SPDX-License-Identifier: GPL-2.0-only
"""The checks of what CI systems read."""

from __future__ import annotations

import json
import re

from pyharness.checks.check import Check
from pyharness.checks.context import Context
from pyharness.checks.finding import Finding
from pyharness.checks.needs import VenvTool

_JSONSCHEMA = VenvTool("check-jsonschema")
_PRE_COMMIT = VenvTool("pre-commit")
_WORKFLOWS = (".github/workflows/*.yml", ".github/workflows/*.yaml", "docs/another-driver/workflow.yml")
_HOOKS = ".pre-commit-config.yaml"


def _workflows(context: Context) -> list[Finding]:
    found = []
    for schema in ("vendor.github-workflows", "custom.github-workflows-require-timeout"):
        for file in context.select(*_WORKFLOWS):
            output = context.run([_JSONSCHEMA.path, "--builtin-schema", schema, "--output-format=json", file])
            if not output.stdout:
                raise output.failure()
            answer = json.loads(output.stdout)
            found += [Finding(file, 0, error["message"], "syntax") for error in answer.get("parse_errors", ())]
            for error in answer.get("errors", ()):
                deepest = error.get("best_deep_match") or error
                line = _line_of(context.text(file), deepest["path"])
                found.append(Finding(file, line, deepest["message"], "schema"))
    return found


def _line_of(text: str, path: str) -> int:
    """The line of a JSON path's last key in a YAML file: each key is looked for below the one before."""
    lines = text.splitlines()
    at = 0
    for key in re.findall(r"[A-Za-z_][\w-]*", path):
        matches = (
            n for n in range(at, len(lines)) if re.match(rf"\s*(?:- )?[\"']?{re.escape(key)}[\"']?\s*:", lines[n])
        )
        at = next(matches, at)
    return at + 1


def _hooks(context: Context) -> list[Finding]:
    found = []
    for file in context.select(_HOOKS):
        output = context.run([_PRE_COMMIT.path, "validate-config", file])
        if output.status:
            message = output.lines[-1].lstrip("=> ")
            hooks = re.findall(r"At Hook\(id='(.*)'\)", output.stdout)
            lines = context.text(file).splitlines()
            at = [
                n
                for n, line in enumerate(lines, start=1)
                if hooks and re.search(rf"\bid: {re.escape(hooks[0])}$", line)
            ]
            found.append(Finding(file, at[0] if at else 0, message, "schema"))
    return found


CHECKS = (
    Check("workflows", "the workflows for GitHub", _workflows, inputs=_WORKFLOWS, needs=(_JSONSCHEMA,)),
    Check("pre-commit", "the configuration of pre-commit", _hooks, inputs=(_HOOKS,), needs=(_PRE_COMMIT,)),
)
