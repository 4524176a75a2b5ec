# SPDX-License-Identifier: GPL-2.0-only
"""The `pyharness` command: parses arguments, runs one subcommand, turns errors into exit codes."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from pyharness import __version__
from pyharness.errors import Exit, HarnessError


@dataclass(frozen=True)
class Subcommand:
    """A row of the command table; the code is in `pyharness.commands.<name>`."""

    name: str
    summary: str


SUBCOMMANDS = (
    Subcommand("run", "boot the guest and move a file through /dev/azure_blob and back (the main job)"),
    Subcommand("test", "build what is missing, then run the test suite with pytest"),
    Subcommand("matrix", "run the test suite on every kernel and print one table"),
    Subcommand("fuzz", "fuzz the ioctl from the guest, or the driver by a hostile host"),
    Subcommand("bench", "measure the driver against HTTP through the guest's TCP stack"),
    Subcommand("check", "static checks: style, licences, static analysis, the interface to user space"),
    Subcommand("abi", "the ABI as all its sources have it, whether they agree, and what is recorded of it"),
    Subcommand("series", "the driver as patches for a kernel tree, and the gate that they must pass"),
    Subcommand("build", "build QEMU, kernel modules and the guest image into the cache"),
    Subcommand("kernels", "list the kernels that can be booted, and what the cache has of them"),
    Subcommand("shell", "an interactive guest with hv_vmbus, the driver and the VSP loaded"),
    Subcommand("blob", "put, get, list and remove blobs through the driver, where it is loaded"),
    Subcommand("inspect", "what the driver holds in a memory dump or a running guest"),
    Subcommand("trace", "print a recorded transcript of VMBus, decoded"),
    Subcommand("doctor", "what this machine can do, what is missing and how to get it"),
    Subcommand("clean", "remove the build directory, and with --cache the cached artifacts"),
)

_STDOUT = 1
_EPILOG = """\
exit codes:
  0  all passed                     3  the guest kernel crashed
  1  a test or a check failed       4  something did not happen in its time
  2  wrong usage                    5  the harness or its environment failed

environment:
  PYHARNESS_CACHE   where built artifacts live (default: ${XDG_CACHE_HOME:-~/.cache}/pyharness)
  PYHARNESS_DEBUG   set to 1 to see the stack trace of an error
"""


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser of the whole command line. Only the chosen subcommand is imported: the rest are names."""
    parser = argparse.ArgumentParser(
        prog="pyharness",
        description="Build hv_azure_blob.ko and a patched hv_vmbus, boot a real kernel on a fake Hyper-V, "
        "and drive the Azure Blob ioctl from Python. Needs neither Hyper-V nor KVM.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pyharness {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for row in SUBCOMMANDS:
        if row.name != chosen:
            commands.add_parser(row.name, help=row.summary)
            continue
        module = importlib.import_module(f"pyharness.commands.{row.name}")
        sub = commands.add_parser(
            row.name,
            help=row.summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(execute=module.execute)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code of `pyharness.errors.Exit`, or 128 and the signal's number."""
    words = list(sys.argv[1:] if argv is None else argv)
    # A run that is terminated, or whose terminal is closed, takes the same way out as Ctrl-C and leaves nothing behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminated)
    try:
        args = build_parser(next((word for word in words if not word.startswith("-")), None)).parse_args(words)
        return int(args.execute(args))
    except HarnessError as error:
        return _report(error)
    except KeyboardInterrupt:
        print("\npyharness: interrupted; nothing is left running", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError as error:
        if not _lost_our_reader():
            return _unexpected(error)
        return Exit.HARNESS
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _unexpected(error)
        return _report(
            HarnessError(
                f"no disk space left while writing {error.filename or 'a file'}",
                mend="free some space, or point PYHARNESS_CACHE at a larger file system",
            )
        )
    except Exception as error:
        return _unexpected(error)


def _lost_our_reader() -> bool:
    """Whether it was our output that nobody reads any more (`pyharness ... | head`), not some other pipe."""
    poll = select.poll()
    poll.register(_STDOUT, 0)  # errors are told in any case
    if not poll.poll(0):
        return False
    # Keep Python's own exit from complaining.
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
    return True


def _terminated(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _report(error: HarnessError) -> int:
    if error.detail:
        print(error.detail.rstrip("\n"), file=sys.stderr)
    print(f"pyharness: {error.message}", file=sys.stderr)
    if error.mend:
        print(f"  mend: {error.mend}", file=sys.stderr)
    if os.environ.get("PYHARNESS_DEBUG"):
        traceback.print_exception(error)
    return error.exit_code


def _unexpected(error: Exception) -> int:
    if os.environ.get("PYHARNESS_DEBUG"):
        traceback.print_exception(error)
    print(
        f"pyharness: a fault in pyharness itself: {type(error).__name__}: {error}\n"
        "  mend: run it again with PYHARNESS_DEBUG=1 and report the stack trace",
        file=sys.stderr,
    )
    return Exit.HARNESS


if __name__ == "__main__":
    sys.exit(main())
