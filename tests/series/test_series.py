# SPDX-License-Identifier: GPL-2.0-only
"""A series as it is made: mails that git takes, the same bytes each time, and what the letter says."""

from __future__ import annotations

import difflib
import json
import os
import subprocess
from pathlib import Path

import pytest

from pyharness import cli, repository
from pyharness.errors import Exit, HarnessError, UsageError
from pyharness.series.compose import DoesNotFit, touched_files
from pyharness.series.letter import figures_of
from pyharness.series.make import Author, Options, Series, default_date, make
from pyharness.series.plan import DRIVER, FIXES, load_plan
from pyharness.series.target import SERIES_KERNELS, Target, tree_target
from pyharness.series.write import FACTS, MBOX, check_directory, write
from tests.series.conftest import change, tree_of

SENDER = Author("A U Thor", "author@example.org")
OPTIONS = Options(SENDER, date=1_700_000_000, ask_tree=False)
BENCH = {
    "accelerator": "tcg",
    "kernel": "debian-6.12",
    "rows": [
        {"path": "driver", "backend": "memory", "op": "get", "size": 4 << 20, "clients": 100}
        | {"bytes_per_s": 3.5 * (1 << 20), "ops_per_s": 12.25, "p50_us": 1500.4, "p99_us": 9000.6},
        {"path": "http", "backend": "memory", "op": "get", "size": 4096, "clients": 1}
        | {"bytes_per_s": 1 << 19, "ops_per_s": 128, "p50_us": 7000, "p99_us": 8000},
    ],
}


def git(directory: Path, *arguments: str) -> str:
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in WHO.items()}
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    environment = {**os.environ, **who, **alone}
    done = subprocess.run(
        ["git", *arguments], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


WHO = {"NAME": "Somebody", "EMAIL": "somebody@example.org"}


@pytest.fixture
def clone(tmp_path: Path, target: Target) -> Path:
    """What the series touches of a tree, in a repository as a maintainer has it, and what makes it a tree."""
    directory = tmp_path / "linux"
    plans = [load_plan(name, repository.ROOT) for name in (DRIVER, FIXES)]
    for file in {"Kconfig", *(file for plan in plans for file in touched_files(plan))}:
        if (text := target.read(file)) is not None:
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            (directory / file).write_text(text)
    for file in ("include/linux/capability.h", "scripts/get_maintainer.pl"):
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / file).write_text(target.read(file) or "")
    git(directory, "init", "--quiet")
    git(directory, "add", ".")
    git(directory, "commit", "--quiet", "-m", "base")
    return directory


@pytest.fixture(scope="module")
def series(target: Target) -> Series:
    return make(DRIVER, target, OPTIONS, repository.ROOT)


def test_git_am_gives_the_sources(series: Series, clone: Path, tmp_path: Path) -> None:
    write(series, tmp_path / "out")
    git(clone, "am", "--quiet", str(tmp_path / "out" / MBOX))
    assert git(clone, "log", "-3", "--format=%an <%ae>%n%(trailers:key=Signed-off-by,valueonly,separator=)") == (
        f"{SENDER}\n{SENDER}\n" * 3
    )
    header = (repository.ROOT / "uapi/hv_azure_blob.h").read_text()
    assert (clone / "include/uapi/linux/hv_azure_blob.h").read_text() == header
    changed = set(git(clone, "diff", "--name-only", "HEAD~3").split())
    assert changed == {
        "Documentation/userspace-api/ioctl/ioctl-number.rst",
        "MAINTAINERS",
        "drivers/hv/Kconfig",
        "drivers/hv/Makefile",
        "drivers/hv/channel_mgmt.c",
        "drivers/hv/hv_azure_blob.c",
        "include/linux/hyperv.h",
        "include/uapi/linux/hv_azure_blob.h",
    }


_INCLUDES = ["+#include <linux/hv_azure_blob.h>", '-#include "hv_azure_blob.h"']


@pytest.mark.parametrize(
    ("kernel", "differences"),
    [
        ("debian-6.1", _INCLUDES),
        *(
            (kernel, [*_INCLUDES, "-", '-#include "hv_azure_blob_compat.h"', "-\t.remove = AZ_BLOB_REMOVE,"])
            for kernel in SERIES_KERNELS[1:]
        ),
    ],
)
def test_driver_is_that_of_the_repository(kernel: str, differences: list[str]) -> None:
    target = tree_of(kernel)
    files = make(DRIVER, target, OPTIONS, repository.ROOT).composed[1].files
    ours = (repository.ROOT / "kernel/hv_azure_blob.c").read_text().splitlines()
    theirs = files["drivers/hv/hv_azure_blob.c"].splitlines()
    lines = [line for line in difflib.unified_diff(ours, theirs, n=0, lineterm="") if not line.startswith("@@")][2:]
    with_compat = "drivers/hv/hv_azure_blob_compat.h" in files
    assert with_compat == (kernel == "debian-6.1")
    assert sorted(lines) == sorted([*differences, *([] if with_compat else ["+\t.remove = az_blob_remove,"])])
    if with_compat:
        compat = (repository.ROOT / "kernel/hv_azure_blob_compat.h").read_text()
        assert files["drivers/hv/hv_azure_blob_compat.h"] == compat


def test_option_depends_on_what_the_tree_calls_vmbus() -> None:
    for kernel, option in (("debian-6.12", "HYPERV"), ("lean-7", "HYPERV_VMBUS")):
        files = make(DRIVER, tree_of(kernel), OPTIONS, repository.ROOT).composed[1].files
        assert f"\tdepends on {option} && " in files["drivers/hv/Kconfig"]


@pytest.mark.parametrize("name", [DRIVER, FIXES])
def test_two_makings_are_equal(name: str, target: Target, tmp_path: Path) -> None:
    for directory in ("one", "two"):
        write(make(name, target, OPTIONS, repository.ROOT), tmp_path / directory)
    files = [{path.name: path.read_bytes() for path in (tmp_path / one).iterdir()} for one in ("one", "two")]
    assert files[0] == files[1]
    assert len(files[0]) > 4


def test_fixes_are_the_rest_of_the_patches(target: Target, series: Series) -> None:
    fixes = make(FIXES, target, OPTIONS, repository.ROOT)
    used = [patch.plan.diff for one in (series, fixes) for patch in one.composed if patch.plan.diff]
    assert sorted(used) == sorted((repository.ROOT / "kernel/patches").glob("*.patch"))


def test_what_the_tree_has_is_left_out(clone: Path, target: Target) -> None:
    fixes = make(FIXES, target, OPTIONS, repository.ROOT)
    (clone / "first.patch").write_text(fixes.patches[0].text)
    git(clone, "am", "--quiet", "first.patch")
    left = make(FIXES, tree_target(clone), OPTIONS, repository.ROOT)
    assert [patch.plan for patch in left.composed] == [patch.plan for patch in fixes.composed[1:]]


def test_letter(series: Series) -> None:
    text = series.letter.text
    assert f"Subject: [PATCH v6 0/3] {series.plan.subject}\n" in text
    assert "***" not in text and "{" not in text.partition("\n\n")[2]
    assert "Made for linux-source-6.12 " in text
    changes, stat = text.index("\n---\nChanges since v5:\n"), text.index(" 8 files changed")
    assert text.index("What reviewers of earlier versions asked") < changes < stat
    assert max(map(len, text.splitlines())) <= 78


def test_version_of_ones_own(target: Target) -> None:
    made = make(DRIVER, target, Options(SENDER, OPTIONS.date, version=7, ask_tree=False), repository.ROOT)
    assert [mail.file[:8] for mail in (made.letter, *made.patches)] == ["v7-0000-", "v7-0001-", "v7-0002-", "v7-0003-"]
    assert "[PATCH v7 2/3] " in made.patches[1].text


def test_figures_are_told_with_their_accelerator(target: Target, tmp_path: Path) -> None:
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps(BENCH))
    made = make(DRIVER, target, Options(SENDER, OPTIONS.date, ask_tree=False, benchmark=bench), repository.ROOT)
    assert figures_of(bench) in made.letter.text
    lines = figures_of(bench).splitlines()
    assert lines[0] == "Figures of one run, accelerator tcg, kernel debian-6.12:"
    assert [line.split() for line in lines[3:]] == [
        ["driver", "memory", "get", "4M", "100", "3.5", "12", "1500", "9001"],
        ["http", "memory", "get", "4K", "1", "0.5", "128", "7000", "8000"],
    ]


@pytest.mark.parametrize("content", ["", "{}", '{"rows": [{}]}', '{"rows": [], "kernel": "k"}', "[]"])
def test_figures_that_are_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(content)
    with pytest.raises(UsageError, match=r"bench\.json is no result of the benchmark"):
        figures_of(tmp_path / "bench.json")


def test_recipients(target: Target) -> None:
    asked = Options(SENDER, OPTIONS.date, to=("Zoë <zoe@example.org>",), cc=(str(SENDER), "list@example.org"))
    made = make(DRIVER, target, asked, repository.ROOT)
    for mail in (made.letter, *made.patches):
        head = mail.text.partition("\n\n")[0].replace("\n    ", " ")
        to, cc = (next(line for line in head.splitlines() if line.startswith(f"{name}: ")) for name in ("To", "Cc"))
        assert to.startswith("To: =?utf-8?") and "<zoe@example.org>, " in to and "wei.liu@kernel.org" in to
        assert cc.startswith("Cc: list@example.org, ") and "linux-hyperv@vger.kernel.org" in cc
        assert SENDER.mail not in to + cc


def test_a_git_tree_is_taken_as_it_is_committed(clone: Path, series: Series) -> None:
    """And it is not written to."""
    commit = git(clone, "rev-parse", "HEAD").strip()
    change(clone / "drivers/hv/Makefile", "obj-$(CONFIG_HYPERV_BALLOON)", "obj-$(CONFIG_BALLOON)")
    before = git(clone, "status", "--porcelain", "--ignored")
    made = make(DRIVER, tree_target(clone), OPTIONS, repository.ROOT)
    assert made.letter.text.rstrip().endswith(f"\n\nbase-commit: {commit}")
    assert [mail.text for mail in made.patches] == [mail.text for mail in series.patches]
    assert git(clone, "status", "--porcelain", "--ignored") == before == " M drivers/hv/Makefile\n"


def test_a_tree_that_has_changed(clone: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    change(
        clone / "drivers/hv/channel_mgmt.c", "static bool vmbus_is_valid_offer(", "static bool vmbus_is_sound_offer("
    )
    git(clone, "commit", "--quiet", "-a", "-m", "renamed")
    code = cli.main(["series", "--kernel-dir", str(clone), "--author", str(SENDER), "-o", str(tmp_path / "out")])
    assert code == Exit.FAILED
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pyharness: ")]
    patch = "kernel/patches/0001-Drivers-hv-vmbus-Ignore-the-Azure-Blob-device-s-VPCI.patch"
    assert error == f"pyharness: {patch}: does not apply to drivers/hv/channel_mgmt.c of linux"
    assert not (tmp_path / "out").exists()


def test_a_tree_with_the_driver(clone: Path, series: Series, tmp_path: Path) -> None:
    write(series, tmp_path / "out")
    git(clone, "am", "--quiet", str(tmp_path / "out" / MBOX))
    with pytest.raises(DoesNotFit, match=r"kernel/hv_azure_blob\.c: linux has drivers/hv/hv_azure_blob\.c already"):
        make(DRIVER, tree_target(clone), OPTIONS, repository.ROOT)


def test_nobody_to_sign_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    with pytest.raises(UsageError, match="nobody is known to sign the series off"):
        Author.configured(tmp_path)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "user.name", SENDER.name)
    git(tmp_path, "config", "user.email", SENDER.mail)
    assert Author.configured(tmp_path) == SENDER


def test_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HarnessError, match=r"^git is not installed$"):
        Author.configured(tmp_path)


@pytest.mark.parametrize("text", ["", "A U Thor", "author@example.org", "A U Thor <author>"])
def test_no_author(text: str) -> None:
    with pytest.raises(UsageError, match="is no author"):
        Author.parse(text)


def test_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    with pytest.raises(UsageError, match="date of the series is not known"):
        default_date(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234567890")
    assert default_date(tmp_path) == 1234567890


def test_a_series_takes_the_place_of_a_series_alone(series: Series, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    write(series, out)
    (out / "left.over").touch()
    write(series, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [FACTS, MBOX, series.letter.file, *(mail.file for mail in series.patches)]
    )
    other.mkdir()
    check_directory(other)
    (other / "mine").touch()
    for place in (other, other / "mine"):
        with pytest.raises(UsageError, match="is not overwritten"):
            write(series, place)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "BUILD", tmp_path / "build")
    given = ["series", "--kernel", "debian-6.12", "--author", str(SENDER), "--no-recipients"]
    assert cli.main(given) == Exit.OK
    printed = capsys.readouterr()
    out = tmp_path / "build/series/debian-6.12"
    assert printed.out.splitlines() == [*(str(path) for path in sorted(out.glob("v6-*.patch"))), str(out / MBOX)]
    assert f"none: there is no {tmp_path}/build/bench/bench.json" in printed.err
    assert cli.main([*given, "--fixes"]) == Exit.OK
    assert (tmp_path / "build/series/debian-6.12-fixes" / MBOX).is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kernel", "nine"], "there is no kernel 'nine'"),
        (["--kernel-dir", "."], "is no Linux source tree"),
        (["--check", "--fixes"], "--fixes is of no use"),
        (["--check", "--kernel", "nine"], "there is no kernel 'nine'"),
        (["--version", "0"], "argument --version: invalid"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    author = [] if "--check" in arguments else ["--author", str(SENDER)]
    try:
        code = cli.main(["series", *author, *arguments])
    except SystemExit as ended:  # by argparse
        code = int(str(ended.code))
    assert code == Exit.USAGE
    assert said in capsys.readouterr().err


def test_modules_are_for_one_kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["test", "--modules", str(tmp_path)]) == Exit.USAGE
    assert "--modules is for one kernel" in capsys.readouterr().err
