# SPDX-License-Identifier: GPL-2.0-only
"""Where the interfaces are written down: three of them, each in two or more places that must say the same."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyharness.abi import btf, header, mirror
from pyharness.abi.compare import Source, everything, nothing
from pyharness.abi.model import Field, Interface, Ioctl, Struct
from pyharness.abi.places import places_of
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import Kernel
from pyharness.artifacts.modules import build_driver
from pyharness.artifacts.run import CommandFailed
from pyharness.checks.finding import Finding
from pyharness.errors import CheckFailed
from pyharness.progress import Progress

UAPI = "uapi/hv_azure_blob.h"
DRIVER = "kernel/hv_azure_blob.c"
QEMU = "qemu/src/include/hw/hyperv/azure-blob-backend.h"
CLIENT = "pyharness/client/abi.py"
WIRE = "pyharness/vsp/wire.py"
FRAMES = "pyharness/vsp/frames.py"

_BUILD, _LOAD = "abi-build", "abi-load"
_COMPILER_SAYS = re.compile(
    r"(?P<file>[^\s:][^:]*):(?P<line>\d+):(?:\d+:)? (?P<kind>error|fatal error|note): (?P<message>.*)"
)

# What Python calls what C calls otherwise: patterns that match the whole of Python's name. Other numbers of a module
# are not of the interface.
_Names = Sequence[tuple[str, str]]
_USER_NAMES: _Names = ((r"AZURE_BLOB_\w+", r"\g<0>"), (r"[A-Z][A-Z0-9_]*", r"AZURE_BLOB_\g<0>"))
_WIRE_NAMES: _Names = (
    (r"REQUEST_VERSION", "AZ_BLOB_WIRE_V1"),
    (r"Operation\.USER_REQUEST", "AZ_BLOB_WIRE_USER_REQUEST"),
    (r"Status\.CONNECTION_DISCONNECTED", "AZURE_BLOB_STATUS_DISCONNECTED"),
)
_FRAME_NAMES: _Names = (
    (r"FrameType\.(\w+)", r"AZURE_BLOB_FRAME_\1"),
    (r"MAGIC", "AZURE_BLOB_FRAME_MAGIC"),
    (r"(PROTOCOL_VERSION|MAX_\w+|FLAG_\w+)", r"AZURE_BLOB_\1"),
)

# What QEMU's header has of the wire, with the driver's names. The rest of it is the backend protocol.
_QEMU_WIRE = {
    "AzureBlobResponse": "az_blob_wire_completion",
    "AzureBlobResponse.length": "az_blob_wire_completion.len",
    "AzureBlobResponse.error": "az_blob_wire_completion.status",
    "AzureBlobResponse.response_len": "az_blob_wire_completion.response_len",
    "AZURE_BLOB_STATUS_DISCONNECTED": "AZURE_BLOB_STATUS_DISCONNECTED",
}
# Constants of QEMU's header that a backend need not know.
_QEMU_OWN = {"AZURE_BLOB_MAX_QUEUED_PACKETS", "AZURE_BLOB_REGION_READ_ONLY"}

_DRIVER_STRUCT = re.compile(r"^struct (az_blob_wire_\w+) \{", re.MULTILINE)
_DRIVER_CONSTANT = re.compile(r"^#define[ \t]+(AZ_BLOB_WIRE_\w+)[ \t]+(0x[0-9a-fA-F]+|\d+)\b", re.MULTILINE)
_KERNEL_STRUCTS = {"vmpacket_descriptor"}


@dataclass(frozen=True)
class Part:
    """An interface and its sources, the authority first."""

    name: str
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Reading:
    """What the sources say, and the faults that kept some from saying it."""

    parts: tuple[Part, ...]
    faults: tuple[Finding, ...]


def read_sources(root: Path, kernel: Kernel, cache: Cache, progress: Progress) -> Reading:
    """Read all sources of the tree `root`, whose driver is built for `kernel`.

    Raises HarnessError when gcc or pahole is missing, and CheckFailed for a bit-field.
    """
    faults: list[Finding] = []
    types = _module_btf(root, kernel, cache, progress, faults)
    qemu = _compiled(root, QEMU, 64, faults)
    return Reading(
        (
            Part("user", tuple(_user(root, types, faults))),
            Part("wire", tuple(_wire(root, types, qemu, faults))),
            Part("backend", tuple(_backend(root, qemu, faults))),
        ),
        tuple(dict.fromkeys(faults)),
    )


def _module_btf(root: Path, kernel: Kernel, cache: Cache, progress: Progress, faults: list[Finding]) -> bytes | None:
    try:
        return btf.of_module(build_driver(kernel, cache, progress, root).debug)
    except CheckFailed as error:
        faults += _errors(error.detail.splitlines(), root, DRIVER)
    return None


def _compiled(root: Path, file: str, bits: int, faults: list[Finding]) -> Interface | None:
    try:
        return header.compile_header(root / file, bits)
    except CommandFailed as error:
        faults += _errors(error.output, root, file)
    return None


def _errors(lines: Sequence[str], root: Path, file: str) -> list[Finding]:
    """The compiler's errors; one in a macro of another tree is where that is used, as the note after it says."""
    found: list[Finding] = []
    for match in filter(None, map(_COMPILER_SAYS.match, lines)):
        named = os.path.normpath(match["file"]).removeprefix(f"{root}/")
        is_ours = (root / named).is_relative_to(root) and (root / named).exists()
        place = (named, int(match["line"])) if is_ours else (file, 0)
        if match["kind"] != "note":
            found.append(Finding(*place, match["message"], _BUILD))
        elif found and place[1] and not found[-1].line:
            found[-1] = Finding(*place, found[-1].message, _BUILD)
    return found or [Finding(file, 0, "does not compile", _BUILD)]


def _mirrored(root: Path, file: str, name: str, names: _Names, faults: list[Finding]) -> Source:
    """A module of Python, with the names that C has."""
    found, lines = mirror.load(root / file), places_of(root / file)
    if found.fault:
        faults.append(Finding(file, 0, f"does not load: {found.fault}", _LOAD))
    known = {number: _translated(number, names) for number in found.numbers}
    constants = {known[number]: value for number, value in found.numbers.items() if known[number]}
    places = lines | {known[number]: line for number, line in lines.items() if known.get(number)}
    return Source(name, file, Interface(found.structs, constants), places, nothing if found.fault else everything)


def _translated(name: str, names: _Names) -> str:
    matches = ((re.fullmatch(pattern, name), result) for pattern, result in names)
    return next((match.expand(result) for match, result in matches if match), "")


def _user(root: Path, types: bytes | None, faults: list[Finding]) -> list[Source]:
    places = places_of(root / UAPI)
    sources = []
    for bits in (64, 32):
        if found := _compiled(root, UAPI, bits, faults):
            sources.append(Source(f"the header ({bits}-bit)", UAPI, found, places, pads=True))
    if types and sources:
        structs = btf.structs_of(types, sources[0].interface.structs)
        # What the header says is not what the driver was built with: it includes another one.
        included = dict.fromkeys(structs, _line_of(root / DRIVER, f'#include "{Path(UAPI).name}"'))
        of_module = sources[0].interface.structs.__contains__
        sources.append(Source("the module's BTF", DRIVER, Interface(structs), included, of_module))
    sources.append(_mirrored(root, CLIENT, "the ctypes mirror", _USER_NAMES, faults))
    return sources


def _line_of(path: Path, text: str) -> int:
    return next((number for number, line in enumerate(path.read_text().splitlines(), 1) if line == text), 0)


def _wire(root: Path, types: bytes | None, qemu: Interface | None, faults: list[Finding]) -> list[Source]:
    sources = []
    if types:
        text = (root / DRIVER).read_text()
        structs = btf.structs_of(types, {*_DRIVER_STRUCT.findall(text), *_KERNEL_STRUCTS})
        constants = {name: int(value, 0) for name, value in _DRIVER_CONSTANT.findall(text)}
        said = Interface(structs, constants)
        sources.append(Source("the driver", DRIVER, said, places_of(root / DRIVER), _is_driver_s, pads=True))
    if qemu:
        lines = places_of(root / QEMU)
        places = {ours: lines[theirs] for theirs, ours in _QEMU_WIRE.items() if theirs in lines}
        covered = frozenset(_QEMU_WIRE.values()).__contains__
        sources.append(Source("QEMU", QEMU, _renamed(qemu, _QEMU_WIRE), places, covered))
    sources.append(_mirrored(root, WIRE, "the Python VSP", _WIRE_NAMES, faults))
    return sources


def _is_driver_s(name: str) -> bool:
    return not name.startswith("AZURE_BLOB_")


def _backend(root: Path, qemu: Interface | None, faults: list[Finding]) -> list[Source]:
    sources = []
    if qemu:
        structs = {name: struct for name, struct in qemu.structs.items() if name not in _QEMU_WIRE}
        others = {name: value for name, value in qemu.constants.items() if name not in {*_QEMU_WIRE, *_QEMU_OWN}}
        said = Interface(structs, others)
        sources.append(Source("QEMU", QEMU, said, places_of(root / QEMU), pads=True))
    sources.append(_mirrored(root, FRAMES, "the Python backend", _FRAME_NAMES, faults))
    return sources


def _renamed(interface: Interface, names: Mapping[str, str]) -> Interface:
    """What `names` has of the interface, under the new names; a field that it has not keeps its own."""
    structs = {}
    for name, struct in interface.structs.items():
        if name in names:
            fields = tuple(_renamed_field(name, one, names) for one in struct.fields)
            structs[names[name]] = Struct(names[name], struct.size, struct.align, fields)
    return Interface(structs, {names[name]: value for name, value in interface.constants.items() if name in names})


def _renamed_field(struct: str, one: Field, names: Mapping[str, str]) -> Field:
    name = names.get(f"{struct}.{one.name}", one.name).rpartition(".")[2]
    return Field(name, one.offset, one.size, one.type, one.count)


def merged(sources: Sequence[Source]) -> Interface:
    """What the sources say together; where they differ, the first that says it."""
    structs: dict[str, Struct] = {}
    constants: dict[str, int] = {}
    ioctls: dict[str, Ioctl] = {}
    for source in reversed(sources):
        structs |= source.interface.structs
        constants |= source.interface.constants
        ioctls |= source.interface.ioctls
    return Interface(structs, {name: value for name, value in constants.items() if name not in ioctls}, ioctls)
