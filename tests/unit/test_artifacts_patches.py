# SPDX-License-Identifier: GPL-2.0-only
"""Laying our files and patches over a foreign tree, edit after edit, without touching what does not change."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyharness.artifacts.patches import apply_patches, is_applied, lay_over
from pyharness.errors import CheckFailed, HarnessError

ORIGINAL = "one\ntwo\nthree\nfour\nfive\n"
PATCH = """\
Subject: a word

--- a/dir/hooked.c
+++ b/dir/hooked.c
@@ -2,4 +2,5 @@
 two
 three
+{word}
 four
 five
"""


class Tree:
    def __init__(self, root: Path) -> None:
        self.tree, self.state, self.own = root / "tree", root / "state", root / "own"
        for path in (self.tree / "dir", self.state, self.own):
            path.mkdir(parents=True)
        (self.tree / "dir/hooked.c").write_text(ORIGINAL)
        (self.tree / "dir/other.c").write_text("other\n")

    def patch(self, word: str) -> Path:
        path = self.own / "0001-hook.patch"
        path.write_text(PATCH.format(word=word))
        return path

    def file(self, text: str) -> dict[str, Path]:
        path = self.own / "device.c"
        path.write_text(text)
        return {"new/device.c": path}

    def content(self) -> dict[str, str]:
        return {str(p.relative_to(self.tree)): p.read_text() for p in sorted(self.tree.rglob("*")) if p.is_file()}

    def stamps(self) -> dict[str, int]:
        return {str(p.relative_to(self.tree)): p.stat().st_mtime_ns for p in self.tree.rglob("*") if p.is_file()}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_edits_touch_only_what_they_change(tree: Tree) -> None:
    lay_over(tree.tree, tree.state, tree.file("device 1"), [tree.patch("hook")])
    assert tree.content() == {
        "dir/hooked.c": "one\ntwo\nthree\nhook\nfour\nfive\n",
        "dir/other.c": "other\n",
        "new/device.c": "device 1",
    }
    first = tree.stamps()
    lay_over(tree.tree, tree.state, tree.file("device 1"), [tree.patch("hook")])
    assert tree.stamps() == first
    lay_over(tree.tree, tree.state, tree.file("device 2"), [tree.patch("hook")])
    second = tree.stamps()
    assert {name for name in first if first[name] != second[name]} == {"new/device.c"}
    lay_over(tree.tree, tree.state, tree.file("device 2"), [tree.patch("other hook")])
    assert "\nother hook\n" in tree.content()["dir/hooked.c"]
    assert "\nhook\n" not in tree.content()["dir/hooked.c"]


def test_what_is_no_longer_laid_over_goes(tree: Tree) -> None:
    pristine = tree.content()
    lay_over(tree.tree, tree.state, tree.file("device"), [tree.patch("hook")])
    lay_over(tree.tree, tree.state, {}, [])
    assert tree.content() == pristine


def test_a_patch_that_does_not_fit_changes_nothing(tree: Tree) -> None:
    lay_over(tree.tree, tree.state, tree.file("device"), [tree.patch("hook")])
    before = tree.content()
    bad = tree.patch("hook")
    bad.write_text(bad.read_text().replace(" three", " thirty"))
    with pytest.raises(HarnessError, match=r"0001-hook\.patch does not apply to QEMU") as caught:
        lay_over(tree.tree, tree.state, tree.file("device"), [bad])
    assert "FAILED" in caught.value.detail
    assert tree.content() == before
    lay_over(tree.tree, tree.state, tree.file("device"), [tree.patch("hook")])
    assert tree.content() == before


def test_a_patch_that_needs_fuzz_is_refused(tree: Tree) -> None:
    (tree.tree / "dir/hooked.c").write_text(ORIGINAL.replace("two", "2"))
    with pytest.raises(CheckFailed):
        apply_patches([tree.patch("hook")], tree.tree, "this")


def test_a_patch_that_a_tree_has_is_known(tree: Tree) -> None:
    """Looked at, the tree stays as it is; another patch of the same place is none that it has."""
    patch = tree.patch("hook")
    assert not is_applied(patch, tree.tree)
    apply_patches([patch], tree.tree, "the tree")
    before = tree.content()
    assert is_applied(patch, tree.tree)
    assert not is_applied(tree.patch("another"), tree.tree)
    assert tree.content() == before
