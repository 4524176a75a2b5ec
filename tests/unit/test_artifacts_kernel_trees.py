# SPDX-License-Identifier: GPL-2.0-only
"""Kernels built from a source tree of a few lines: what is configured, built anew, kept, and refused."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import Kernel, KernelTree, ensure_kernel
from pyharness.errors import CheckFailed, HarnessError, UsageError
from pyharness.progress import Progress

# What kbuild does, as far as the harness is concerned. It knows two options; the second depends on the first.
MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 19
SUBLEVEL = 3
O ?= .
tinyconfig:
	echo CONFIG_KERNEL=y >$(O)/.config
olddefconfig:
	grep -E '^CONFIG_(KERNEL|MODULES|KASAN)=' $(O)/.config >$(O)/.new || true
	grep CONFIG_MODULES[=\\ ] $(O)/.config | tail -n1 | grep -q =y || sed -i /KASAN/d $(O)/.new
	mv $(O)/.new $(O)/.config
bzImage:
	! grep -n broken init/main.c | sed 's/^/init\\/main.c:/; s/$$/: error: expected ;/' | grep .
	mkdir -p $(O)/arch/x86/boot $(O)/include/config $(O)/include/generated
	cp init/main.c $(O)/arch/x86/boot/bzImage
	cp init/main.c $(O)/vmlinux
	echo 6.19.3-lean >$(O)/include/config/kernel.release
	echo "  CC      init/main.o"
	echo built >>$(O)/compiled
modules:
	echo 0x1 vmbus_open >$(O)/Module.symvers
modules_install:
	mkdir -p $(INSTALL_MOD_PATH)/lib/modules/6.19.3-lean/kernel/drivers/hv
	touch $(INSTALL_MOD_PATH)/lib/modules/6.19.3-lean/kernel/drivers/hv/hv_vmbus.ko
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "linux"
    for name, text in {
        "Makefile": MAKEFILE,
        "Kconfig": "",
        "drivers/hv/Kconfig": "config HYPERV\n",
        "drivers/hv/vmbus_drv.c": "int vmbus;\n",
        "include/linux/hyperv.h": "struct vmbus_channel;\n",
        "init/main.c": "int main;\n",
        "scripts/checkpatch.pl": "#!/usr/bin/perl\n",
    }.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return top


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def build(tree: KernelTree, cache: Cache, said: io.StringIO | None = None) -> Kernel:
    return ensure_kernel(tree, cache, Progress(stream=said or io.StringIO()))


def files(top: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def test_a_tree_becomes_a_kernel_and_stays_as_it_is(tree: Path, cache: Cache) -> None:
    before = files(tree)
    kernel = build(KernelTree(tree), cache)
    assert files(tree) == before
    assert (kernel.name, kernel.release, kernel.version, kernel.gcc) == ("linux", "6.19.3-lean", "6.19.3", "gcc-12")
    assert kernel.vmlinuz.read_text() == "int main;\n"
    assert kernel.vmlinux and kernel.vmlinux.exists() and kernel.stock_vmbus.exists()
    assert kernel.has("MODULES") and not kernel.judges
    assert (kernel.headers / "Makefile").exists() and (kernel.headers / "Module.symvers").exists()
    assert (kernel.headers / "include/linux/hyperv.h").exists() and (kernel.headers / "include/config").is_dir()
    assert (kernel.source / "drivers/hv/vmbus_drv.c").exists() and (kernel.source / "include/linux/hyperv.h").exists()


def test_only_an_edit_makes_another_kernel(tree: Path, cache: Cache) -> None:
    first = build(KernelTree(tree), cache)
    assert build(KernelTree(tree), cache).key == first.key
    (tree / "init/main.c").write_text("int edited;\n")
    image = build(KernelTree(tree), cache)
    (tree / "drivers/hv/vmbus_drv.c").write_text("int edited;\n")
    vmbus = build(KernelTree(tree), cache)
    assert len({first.key, image.key, vmbus.key}) == 3
    assert first.vmlinuz.read_text() == "int main;\n", "a kernel in use is never changed"


def test_the_objects_are_kept_for_the_next_build(tree: Path, cache: Cache) -> None:
    for _ in range(3):
        build(KernelTree(tree), cache)
    (compiled,) = cache.root.glob("entries/kernel-build/*/objects/compiled")
    assert compiled.read_text() == "built\n" * 3


def test_options_of_the_developer_come_last(tree: Path, cache: Cache, tmp_path: Path) -> None:
    more = tmp_path / "more.config"
    more.write_text("CONFIG_KASAN=y\n")
    assert build(KernelTree(tree, (more,)), cache).has("KASAN")
    assert not build(KernelTree(tree), cache).has("KASAN"), "another configuration is another build"


def test_an_option_of_the_developer_that_is_not_taken_is_named(tree: Path, cache: Cache, tmp_path: Path) -> None:
    more = tmp_path / "more.config"
    more.write_text("# CONFIG_MODULES is not set\nCONFIG_KASAN=y\nCONFIG_NO_SUCH=y\n")
    for _ in range(2):
        with pytest.raises(UsageError, match="does not take CONFIG_KASAN=y, CONFIG_NO_SUCH=y of more") as caught:
            build(KernelTree(tree, (more,)), cache)
        assert caught.value.mend


def test_an_option_of_ours_that_the_tree_does_not_have_is_told(tree: Path, cache: Cache) -> None:
    said = io.StringIO()
    build(KernelTree(tree), cache, said)
    assert "does not take" in said.getvalue() and "of guest.config" in said.getvalue()


def test_a_compile_error_is_shown_and_its_correction_builds(tree: Path, cache: Cache) -> None:
    (tree / "init/main.c").write_text("int broken\n")
    with pytest.raises(CheckFailed, match="does not build") as caught:
        build(KernelTree(tree), cache)
    assert "init/main.c:1:int broken: error: expected ;" in caught.value.detail
    assert not any(line.startswith("make") for line in caught.value.detail.splitlines())
    (tree / "init/main.c").write_text("int mended;\n")
    assert build(KernelTree(tree), cache).vmlinuz.read_text() == "int mended;\n"


@pytest.mark.parametrize("built", [".config", "include/config/auto.conf"])
def test_a_tree_that_was_built_in_place_is_refused_with_a_way_out(tree: Path, cache: Cache, built: str) -> None:
    (tree / built).parent.mkdir(exist_ok=True)
    (tree / built).write_text("")
    with pytest.raises(UsageError, match="in place") as caught:
        build(KernelTree(tree), cache)
    assert "worktree" in caught.value.mend


def test_what_is_no_kernel_tree_is_refused(tmp_path: Path, cache: Cache) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="no Linux source tree"):
            build(KernelTree(directory), cache)


def test_a_missing_file_of_options_is_named(tree: Path, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no configuration file"):
        build(KernelTree(tree, (tmp_path / "none.config",)), cache)


def test_a_tree_that_cannot_be_installed_leaves_no_entry(tree: Path, cache: Cache) -> None:
    makefile = tree / "Makefile"
    makefile.write_text(makefile.read_text().replace("modules_install:", "other:"))
    with pytest.raises(HarnessError):
        build(KernelTree(tree), cache)
    assert not list(cache.root.glob("entries/kernel/*"))
    assert not list((cache.root / "tmp").iterdir())
