# SPDX-License-Identifier: GPL-2.0-only
"""The module build against a kernel tree of a few lines: what is rebuilt after which edit, and how errors are told."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from pyharness import repository as checkout
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import KERNELS, Kernel, ensure_kernel
from pyharness.artifacts.modules import build_modules, given_modules
from pyharness.errors import CheckFailed, HarnessError, UsageError
from pyharness.progress import Progress

# `make M=DIR modules` of a kernel, as far as the build is concerned: compile each module's source where it is.
FAKE_HEADERS = """\
modules:
	test -f $(M)/Kbuild
	cd $(M) && for s in hv_*.c; do gcc $(KCFLAGS) -I$(M)/../uapi -g -Wall -c -o $${s%.c}.ko $(M)/$$s || exit 2; done
"""
DRIVER = '#include "hv_azure_blob.h"\nint answer(void)\n{\n\treturn AZURE_BLOB;\n}\n'


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "repository"
    for name, text in {
        "kernel/Kbuild": "obj-m := hv_azure_blob.o\n",
        "kernel/hv_azure_blob.c": DRIVER,
        "kernel/vmbus/Kbuild": "obj-m := hv_vmbus.o\n",
        "kernel/patches/0001-word.patch": "--- a/drivers/hv/hv_vmbus.c\n+++ b/drivers/hv/hv_vmbus.c\n"
        "@@ -1 +1,2 @@\n int vmbus;\n+int patched;\n",
        "uapi/hv_azure_blob.h": "#define AZURE_BLOB 42\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(checkout, "ROOT", root)
    return root


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    headers, source = tmp_path / "headers", tmp_path / "source"
    (source / "drivers/hv").mkdir(parents=True)
    (source / "drivers/hv/hv_vmbus.c").write_text("int vmbus;\n")
    headers.mkdir()
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/config-6.0-fake").write_text("CONFIG_MODULES=y\n")
    (headers / "Makefile").write_text(FAKE_HEADERS)
    return Kernel("fake", "k", "6.0-fake", "6.0", "gcc", tmp_path, headers, source)


def test_an_edit_rebuilds_only_what_it_concerns(tmp_path: Path, repository: Path, kernel: Kernel) -> None:
    cache, progress = Cache(tmp_path / "cache"), Progress(stream=io.StringIO())
    first = build_modules(kernel, cache, progress)
    assert b"patched" in first.vmbus.path.read_bytes()
    assert build_modules(kernel, cache, progress) == first
    source = repository / "kernel/hv_azure_blob.c"
    source.write_text(DRIVER.replace("answer", "reply"))
    second = build_modules(kernel, cache, progress)
    assert second.vmbus.hash == first.vmbus.hash
    assert second.driver.hash != first.driver.hash
    assert b"reply" in second.driver.path.read_bytes()
    (repository / "uapi/hv_azure_blob.h").write_text("#define AZURE_BLOB 43\n")
    assert build_modules(kernel, cache, progress).driver.hash not in (first.driver.hash, second.driver.hash)
    (repository / "kernel/vmbus/Kbuild").write_text("obj-m := hv_vmbus.o\n# edited\n")
    edited = build_modules(kernel, cache, progress)
    assert edited.vmbus.hash != first.vmbus.hash
    (repository / "kernel/patches/0001-word.patch").unlink()
    third = build_modules(kernel, cache, progress)
    assert third.vmbus.hash not in (first.vmbus.hash, edited.vmbus.hash)
    assert b"patched" not in third.vmbus.path.read_bytes()


def test_debug_information_is_kept_beside_and_names_the_repository(
    tmp_path: Path, repository: Path, kernel: Kernel
) -> None:
    built = build_modules(kernel, Cache(tmp_path / "cache"), Progress(stream=io.StringIO()))
    assert b".debug_info" in built.driver.debug.read_bytes()
    assert b".debug_info" not in built.driver.path.read_bytes()
    assert b"kernel/hv_azure_blob.c" in built.driver.debug.read_bytes()
    assert str(tmp_path / "cache/tmp").encode() not in built.driver.debug.read_bytes()


def test_a_compile_error_names_the_line_in_the_repository(tmp_path: Path, repository: Path, kernel: Kernel) -> None:
    (repository / "kernel/hv_azure_blob.c").write_text(DRIVER.replace("AZURE_BLOB;", "AZURE_BLOT;"))
    cache = Cache(tmp_path / "cache")
    with pytest.raises(CheckFailed, match="hv_azure_blob does not build for fake") as caught:
        build_modules(kernel, cache, Progress(stream=io.StringIO()))
    assert caught.value.exit_code == 1
    assert "kernel/hv_azure_blob.c:4:" in caught.value.detail
    assert str(tmp_path) not in caught.value.detail
    assert list((cache.root / "tmp").iterdir()) == []


def test_a_warning_is_shown(tmp_path: Path, repository: Path, kernel: Kernel) -> None:
    (repository / "kernel/hv_azure_blob.c").write_text(DRIVER + "static int unused(void)\n{\n\treturn 0;\n}\n")
    shown = io.StringIO()
    build_modules(kernel, Cache(tmp_path / "cache"), Progress(stream=shown))
    assert "kernel/hv_azure_blob.c:6:12: warning:" in shown.getvalue()


def test_a_patch_that_does_not_apply_is_named(tmp_path: Path, repository: Path, kernel: Kernel) -> None:
    patch = repository / "kernel/patches/0001-word.patch"
    patch.write_text(patch.read_text().replace(" int vmbus", " int other"))
    with pytest.raises(CheckFailed, match=r"0001-word\.patch does not apply to fake"):
        build_modules(kernel, Cache(tmp_path / "cache"), Progress(stream=io.StringIO()))


def test_a_missing_compiler_is_named(tmp_path: Path, repository: Path, kernel: Kernel) -> None:
    other = Kernel("fake", "k", "6.0-fake", "6.0", "gcc-99", tmp_path, kernel.headers, kernel.source)
    with pytest.raises(HarnessError, match="gcc-99 is not installed") as caught:
        build_modules(other, Cache(tmp_path / "cache"), Progress(stream=io.StringIO()))
    assert "gcc-99" in caught.value.mend


def test_an_unknown_kernel_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no kernel") as caught:
        ensure_kernel("debian-2.4", Cache(tmp_path), Progress(stream=io.StringIO()))
    assert all(name in caught.value.mend for name in KERNELS)


def test_modules_that_were_made_elsewhere(tmp_path: Path, repository: Path, kernel: Kernel) -> None:
    cache = Cache(tmp_path / "cache")
    built = build_modules(kernel, cache, Progress(stream=io.StringIO()))
    made = tmp_path / "made"
    made.mkdir()
    with pytest.raises(UsageError, match=r"made has no hv_vmbus\.ko"):
        given_modules(made, cache)
    for module in (built.vmbus, built.driver):
        (made / f"{module.name}.ko").write_bytes(module.debug.read_bytes())
    given = given_modules(made, cache)
    for one, other in ((given.vmbus, built.vmbus), (given.driver, built.driver)):
        assert one.path.read_bytes() == other.path.read_bytes()
        assert one.debug.read_bytes() == other.debug.read_bytes()
        assert one.hash != other.hash
    for text in ("int first;", "int second;"):
        (made / "sources").mkdir(exist_ok=True)
        (made / "sources/hv_vmbus.c").write_text(text)
        assert (given_modules(made, cache).vmbus.sources / "hv_vmbus.c").read_text() == text
