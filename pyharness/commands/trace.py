# SPDX-License-Identifier: GPL-2.0-only
"""Print a transcript of VMBus that --trace has recorded, decoded, one line for each message or packet.

A line has its number in FILE, guest time in seconds since power-on, who sent it (-> the guest, <- the host), the
channel with its device's class and instance, what it is and says, and which earlier line it answers after how long.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pyharness.errors import Exit, UsageError
from pyharness.trace.compare import comparable
from pyharness.trace.dialogue import Dialogue, Event
from pyharness.trace.records import SIDES, Transcript
from pyharness.trace.render import Lines, as_json, header_line
from pyharness.trace.summary import Summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness trace`."""
    parser.add_argument("file", metavar="FILE", help="the transcript; - is standard input")
    parser.add_argument("--relid", type=int, metavar="N", help="only the channel N")
    parser.add_argument("--from", dest="sender", choices=SIDES, help="only what this side sent")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--delta", action="store_true", help="show the time since the line before, not since power-on")
    shape.add_argument("--json", action="store_true", help="print JSON Lines: FILE's own, with what they mean")
    shape.add_argument("--summary", action="store_true", help="print how many of what, and how long answers took")
    shape.add_argument(
        "--comparable", action="store_true", help="leave out what differs from one run to the next, for diff"
    )


def execute(args: argparse.Namespace) -> Exit:
    """Read and print; what is still being written may be read too (`tail -f`)."""
    name = "standard input" if args.file == "-" else args.file
    with _open(args.file) as stream:
        dialogue = Dialogue(Transcript(stream, name))
        chosen = (event for event in dialogue if _is_chosen(event, args))
        if args.summary:
            summary = Summary()
            for event in chosen:
                summary.add(event)
            print(summary.render(dialogue.pairing.unanswered))
        elif args.comparable:
            print("\n".join(comparable(chosen)))
        elif args.json:
            for event in chosen:
                print(as_json(event))
        else:
            _print_lines(chosen, dialogue, args.delta)
        sys.stdout.flush()
    if dialogue.transcript.is_cut:
        print(f"{name}: the last line is cut off, and left out", file=sys.stderr)
    return Exit.OK


def _is_chosen(event: Event, args: argparse.Namespace) -> bool:
    relid = event.channel.relid if event.channel else None
    return args.relid in (None, relid) and args.sender in (None, event.line.record.sender)


def _print_lines(events: Iterator[Event], dialogue: Dialogue, delta: bool) -> None:
    lines = Lines(delta=delta, colour=sys.stdout.isatty() and os.environ.get("NO_COLOR", "") == "")
    is_first = True
    for event in events:
        if is_first and dialogue.transcript.header:
            print(header_line(dialogue.transcript.header))
        is_first = False
        print(lines.render(event))


def _open(file: str) -> BinaryIO:
    try:
        return sys.stdin.buffer if file == "-" else Path(file).open("rb")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot read {file}: {reason}", mend="name a file that you can read") from error
