# SPDX-License-Identifier: GPL-2.0-only
"""Which changes of the ABI may be recorded, and which need a new number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pyharness.abi.model import Field, Hole, Interface, Ioctl, Struct
from pyharness.abi.record import COMPATIBLE, Kind, changes, load, refusals, store
from pyharness.errors import CheckFailed

INNER = Struct("inner", 4, 4, (Field("status", 0, 4, "u32"),))
OUTER = Struct("outer", 12, 4, (Field("guid", 0, 8, "u8", 8), Field("answer", 8, 4, "struct inner")))
IOCTL = Ioctl(0xC00C52F0, "outer")
OTHER = Ioctl(0xC00C52F1, "outer")
USER = Interface({"inner": INNER, "outer": OUTER}, {"MOST": 8}, {"CALL": IOCTL})
BACKEND = Interface({"inner": INNER}, {"AZURE_BLOB_PROTOCOL_VERSION": 2, "MOST": 8})


def with_structs(*structs: Struct) -> Interface:
    return replace(USER, structs={one.name: one for one in structs})


def outer(*fields: Field, size: int = 12, align: int = 4) -> Interface:
    return with_structs(INNER, Struct("outer", size, align, fields))


GUID, ANSWER = OUTER.fields
EDITS = {
    Kind.STRUCT_ADDED: replace(USER, structs={**USER.structs, "more": replace(INNER, name="more")}),
    Kind.STRUCT_REMOVED: with_structs(OUTER),
    Kind.STRUCT_RESIZED: outer(GUID, ANSWER, size=16),
    Kind.STRUCT_REALIGNED: outer(GUID, ANSWER, align=8),
    Kind.FIELD_ADDED: outer(GUID, ANSWER, Field("more", 8, 4, "u32")),
    Kind.FIELD_REMOVED: outer(ANSWER),
    Kind.FIELD_MOVED: outer(replace(GUID, offset=4), ANSWER),
    Kind.FIELD_RETYPED: outer(replace(GUID, type="s8"), ANSWER),
    Kind.CONSTANT_ADDED: replace(USER, constants={"MOST": 8, "LEAST": 1}),
    Kind.CONSTANT_REMOVED: replace(USER, constants={}),
    Kind.CONSTANT_CHANGED: replace(USER, constants={"MOST": 4}),
    Kind.IOCTL_ADDED: replace(USER, ioctls={"CALL": IOCTL, "CALL2": OTHER}),
    Kind.IOCTL_REMOVED: replace(USER, ioctls={}),
    Kind.IOCTL_CHANGED: replace(USER, ioctls={"CALL": replace(IOCTL, command=0xC01052F0)}),
}


@pytest.mark.parametrize("kind", Kind)
def test_change_is_told_by_its_kind(kind: Kind) -> None:
    assert [change.kind for change in changes(USER, EDITS[kind])] == [kind]


@pytest.mark.parametrize("kind", Kind)
def test_incompatible_change_is_refused_under_the_old_number(kind: Kind) -> None:
    refused = [change.kind for change in refusals("user", USER, EDITS[kind])]
    assert refused == ([] if COMPATIBLE[kind] else [kind])


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (Kind.IOCTL_REMOVED, Kind.IOCTL_CHANGED)])
def test_any_change_is_taken_when_the_ioctl_has_a_new_number(kind: Kind) -> None:
    after = replace(EDITS[kind], ioctls={"CALL": OTHER})
    assert refusals("user", USER, after) == []


def test_ioctl_may_go_when_another_number_comes() -> None:
    assert refusals("user", USER, replace(USER, ioctls={"CALL2": OTHER})) == []


@pytest.mark.parametrize("kind", [Kind.STRUCT_RESIZED, Kind.FIELD_MOVED])
def test_a_further_ioctl_does_not_allow_to_change_the_struct_of_the_old_one(kind: Kind) -> None:
    after = replace(EDITS[kind], ioctls={"CALL": IOCTL, "CALL2": OTHER})
    assert [change.kind for change in refusals("user", USER, after)] == [kind]


def test_struct_within_the_argument_is_of_the_ioctl_too() -> None:
    after = with_structs(replace(INNER, fields=(Field("error", 0, 4, "u32"),)), OUTER)
    refused = refusals("user", USER, replace(after, ioctls={"CALL": IOCTL, "CALL2": Ioctl(0x52F2)}))
    assert [change.item for change in refused] == ["inner.status", "inner.error"]


def test_size_in_the_command_is_no_new_number() -> None:
    after = replace(EDITS[Kind.STRUCT_RESIZED], ioctls={"CALL": replace(IOCTL, command=0xC01052F0)})
    assert [change.kind for change in refusals("user", USER, after)] == [Kind.STRUCT_RESIZED, Kind.IOCTL_CHANGED]


@pytest.mark.parametrize(("version", "is_refused"), [(2, True), (3, False)])
def test_backend_protocol_goes_by_its_version(version: int, is_refused: bool) -> None:
    changed = {"inner": replace(INNER, size=8)}
    after = Interface(changed, {**BACKEND.constants, "AZURE_BLOB_PROTOCOL_VERSION": version})
    assert bool(refusals("backend", BACKEND, after)) == is_refused


def test_record_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "uapi").mkdir()
    assert load(tmp_path) == {}
    store(tmp_path, {"user": USER, "backend": BACKEND})
    assert load(tmp_path) == {"user": USER, "backend": BACKEND}


def test_order_of_the_sources_does_not_show_in_the_record() -> None:
    other = Interface(dict(reversed([*USER.structs.items()])), USER.constants, USER.ioctls)
    assert json.dumps(other.as_json()) == json.dumps(USER.as_json())


def test_refused_change_leaves_the_record_alone(tmp_path: Path) -> None:
    (tmp_path / "uapi").mkdir()
    store(tmp_path, {"user": USER})
    with pytest.raises(CheckFailed, match=r"^MOST: constant changed, 8 to 4: incompatible, needs a new ioctl number$"):
        store(tmp_path, {"user": EDITS[Kind.CONSTANT_CHANGED]})
    assert load(tmp_path) == {"user": USER}


def test_holes_between_fields_and_at_the_end() -> None:
    struct = Struct(
        "holey", 24, 8, (Field("small", 0, 4, "u32"), Field("big", 8, 8, "u64"), Field("last", 16, 4, "u32"))
    )
    assert list(struct.holes()) == [Hole("big", 4), Hole("", 4)]
    assert list(OUTER.holes()) == []
