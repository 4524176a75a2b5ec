# SPDX-License-Identifier: GPL-2.0-only
"""The private apt: mirrors from real sources files as apt itself reads them, and a repository that loses packages."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyharness.artifacts import apt as apt_module
from pyharness.artifacts.apt import Apt, Gone, Mirrors, NoLists, Package, Release, Suite, parse_mirrors, sort_versions
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels.packaged import DebianKernel, PackageSet, newest_package_set
from pyharness.errors import HarnessError
from pyharness.progress import Progress

DEBIAN_12_CONTAINER = """\
Types: deb
# http://snapshot.example/archive/debian/20250520T000000Z
URIs: http://deb.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""

DEBIAN_13_INSTALLER = """\
# Modernized from /etc/apt/sources.list
Types: deb deb-src
URIs: https://ftp.xx.example/debian/
Suites: trixie trixie-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://switched-off.example/debian/
Suites: trixie trixie-updates
Components: main

Types: deb deb-src
URIs: https://security.example/debian-security/
Suites: trixie-security
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""

CLOUD_IMAGE = """\
Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: bookworm bookworm-updates bookworm-backports
Components: main

Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian-security.list
Suites: bookworm-security
Components: main
"""

ONE_LINE = """\
#deb cdrom:[Debian GNU/Linux 12.0.0]/ bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/pub/debian bookworm main
deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/pub/debian bookworm main
deb http://security.example/debian-security bookworm-security main contrib # the security one
"""

THIRD_PARTIES = """\
deb https://apt.vendor.example bookworm main
deb https://download.example/linux/debian bookworm stable
deb https://packages.example/apt cloud-sdk-bookworm main
"""

NO_SECURITY = "deb http://mirror.example/debian trixie main\n"
UBUNTU = (
    "deb http://archive.example/ubuntu noble main universe\ndeb http://archive.example/ubuntu noble-security main\n"
)


def as_apt_reads(directory: Path, **files: str) -> list[str]:
    parts, lists = directory / "parts", directory / "lists" / "partial"
    parts.mkdir()
    lists.mkdir(parents=True)
    for name, text in files.items():
        (parts / name.replace("_", ".")).write_text(text)
    options = [f"Dir::Etc::SourceParts={parts}", "Dir::Etc::SourceList=/dev/null", f"Dir::State::Lists={lists.parent}"]
    argv = ["apt-get", "update", "--print-uris", *(word for option in options for word in ("-o", option))]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("files", "main", "security"),
    [
        ({"debian_sources": DEBIAN_12_CONTAINER}, "http://deb.example/debian", "http://deb.example/debian-security"),
        (
            {"debian_sources": DEBIAN_13_INSTALLER},
            "https://ftp.xx.example/debian",
            "https://security.example/debian-security",
        ),
        (
            {"debian_sources": CLOUD_IMAGE},
            "mirror+file:/etc/apt/mirrors/debian.list",
            "mirror+file:/etc/apt/mirrors/debian-security.list",
        ),
        ({"old_list": ONE_LINE}, "http://mirror.example/pub/debian", "http://security.example/debian-security"),
        (
            {"a_list": THIRD_PARTIES, "b_list": ONE_LINE},
            "http://mirror.example/pub/debian",
            "http://security.example/debian-security",
        ),
        (
            {"a_list": THIRD_PARTIES, "z_sources": CLOUD_IMAGE},
            "mirror+file:/etc/apt/mirrors/debian.list",
            "mirror+file:/etc/apt/mirrors/debian-security.list",
        ),
        ({"x_list": NO_SECURITY}, "http://mirror.example/debian", "http://mirror.example/debian-security"),
    ],
)
def test_mirrors_of_real_sources(tmp_path: Path, files: dict[str, str], main: str, security: str) -> None:
    assert parse_mirrors(as_apt_reads(tmp_path, **files)) == Mirrors(main, security)


@pytest.mark.parametrize("files", [{}, {"ubuntu_list": UBUNTU}])
def test_no_debian_mirror(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(HarnessError, match="no Debian mirror") as caught:
        parse_mirrors(as_apt_reads(tmp_path, **files))
    assert caught.value.mend


def test_versions_sort_as_dpkg_sorts() -> None:
    shuffled = ["6.12.107-1~deb12u1", "6.12.107-1", "1:1", "6.12.94-1", "6.12.107-1~deb12u10"]
    assert sort_versions(shuffled) == ["1:1", "6.12.107-1", "6.12.107-1~deb12u10", "6.12.107-1~deb12u1", "6.12.94-1"]


class Repository:
    """A small Debian archive with one suite, served over HTTP on this machine."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.stanzas: list[str] = []
        self.published = 0

    def add(self, name: str, version: str, depends: str = "") -> Path:
        tree = self.directory / "tree" / f"{name}-{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody\nDescription: a test\n"
        control += f"Depends: {depends}\n" if depends else ""
        (tree / "DEBIAN" / "control").write_text(control)
        deb = self.directory / "pool" / f"{name}_{version}_amd64.deb"
        deb.parent.mkdir(exist_ok=True)
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, deb], check=True, capture_output=True)
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        self.stanzas.append(f"{control}Filename: pool/{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")
        return deb

    def publish(self) -> None:
        suite = self.directory / "dists" / "bookworm"
        index = suite / "main" / "binary-amd64" / "Packages"
        index.parent.mkdir(parents=True, exist_ok=True)
        index.write_text("\n".join(self.stanzas))
        digest = hashlib.sha256(index.read_bytes()).hexdigest()
        (suite / "Release").write_text(
            "Origin: Test\nSuite: bookworm\nCodename: bookworm\nArchitectures: amd64\nComponents: main\n"
            f"SHA256:\n {digest} {index.stat().st_size} main/binary-amd64/Packages\n"
        )
        # HTTP tells versions apart by whole seconds.
        self.published += 10
        for path in (index, suite / "Release"):
            os.utime(path, (self.published, self.published))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    served = tmp_path / "served"
    served.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        # To apt this is the machine's own configuration; the tests' archive is unsigned.
        parts = tmp_path / "system"
        parts.mkdir()
        (parts / "debian.list").write_text(f"deb {url} bookworm main\n")
        config = tmp_path / "apt.conf"
        config.write_text(
            f'Dir::Etc::SourceList "/dev/null";\nDir::Etc::SourceParts "{parts}";\nAcquire::http::Proxy "DIRECT";\n'
        )
        monkeypatch.setenv("APT_CONFIG", str(config))
        monkeypatch.setattr(apt_module, "_TRUST", "trusted=yes")
        monkeypatch.setitem(apt_module.RELEASES, "test", Release((Suite("bookworm"),)))
        yield Repository(served, url)
        server.shutdown()


def open_apt(tmp_path: Path, output: io.StringIO | None = None) -> Apt:
    return Apt(Cache(tmp_path / "cache"), "test", Progress(stream=output or io.StringIO()))


def test_download_and_closure(tmp_path: Path, repository: Repository) -> None:
    repository.add("tool", "1.0", depends="library (>= 1)")
    repository.add("library", "1.1")
    repository.add("library", "1.0")
    repository.publish()
    apt = open_apt(tmp_path)
    assert apt.versions("library") == [Package("library", "1.1"), Package("library", "1.0")]
    assert apt.versions("unknown") == []
    assert apt.names("li") == ["library"]
    closure = apt.closure(["tool"])
    assert closure == [Package("library", "1.1"), Package("tool", "1.0")]
    debs = tmp_path / "debs"
    debs.mkdir()
    assert [deb.name for deb in apt.download(closure, debs)] == ["library_1.1_amd64.deb", "tool_1.0_amd64.deb"]


def test_listed_but_gone_falls_back_and_says_so(tmp_path: Path, repository: Repository) -> None:
    repository.add("library", "1.1").unlink()
    repository.add("library", "1.0")
    repository.publish()
    output = io.StringIO()
    apt = open_apt(tmp_path, output)
    apt.refresh()
    debs = tmp_path / "debs"
    debs.mkdir()
    with pytest.raises(Gone) as caught:
        apt.download([Package("library", "1.1")], debs)
    assert caught.value.packages == (Package("library", "1.1"),)
    chosen, deb = apt.fetch_newest(
        None, lambda: apt.versions("library")[0], lambda package: apt.download([package], debs)[0]
    )
    assert (chosen, deb.name) == (Package("library", "1.0"), "library_1.0_amd64.deb")
    assert "library=1.1" in output.getvalue()
    assert apt.closure(["library"]) == [Package("library", "1.0")]


def test_lists_that_have_aged_are_fetched_anew_before_falling_back(tmp_path: Path, repository: Repository) -> None:
    old = repository.add("library", "1.0")
    repository.publish()
    open_apt(tmp_path).refresh()
    old.unlink()
    repository.stanzas.clear()
    repository.add("library", "2.0")
    repository.publish()
    apt = open_apt(tmp_path)
    assert apt.versions("library") == [Package("library", "1.0")], "the lists were fetched though they are fresh"
    debs = tmp_path / "debs"
    debs.mkdir()
    known = Package("library", "1.0")
    chosen, _ = apt.fetch_newest(known, lambda: apt.versions("library")[0], lambda p: apt.download([p], debs)[0])
    assert chosen == Package("library", "2.0")


def test_content_that_is_not_the_listed_one_is_refused(tmp_path: Path, repository: Repository) -> None:
    deb = repository.add("library", "1.0")
    repository.publish()
    content = bytearray(deb.read_bytes())
    content[-1] ^= 1
    deb.write_bytes(content)
    debs = tmp_path / "debs"
    debs.mkdir()
    with pytest.raises(Gone):
        open_apt(tmp_path).download([Package("library", "1.0")], debs)
    assert list(debs.glob("*.deb")) == []


def test_nothing_left_is_an_error_with_a_mend(tmp_path: Path, repository: Repository) -> None:
    for version in ("1.0", "1.1"):
        for name in ("linux-image-6.1.0-1-amd64-unsigned", "linux-source-6.1"):
            repository.add(name, version).unlink()
    repository.publish()
    apt = open_apt(tmp_path)
    spec = DebianKernel("", "test", "linux-source-6.1", r"linux-image-(6\.1\.0-\d+)-amd64-unsigned", "linux-kbuild-6.1")
    debs = tmp_path / "debs"
    debs.mkdir()
    tried = []

    def build(packages: PackageSet) -> Path:
        tried.append(packages.version)
        return apt.download([Package(packages.source, packages.version)], debs)[0]

    with pytest.raises(HarnessError, match="no complete set") as caught:
        apt.fetch_newest(None, lambda: newest_package_set("k", spec, apt), build)
    assert caught.value.mend
    assert tried == ["1.1", "1.0"]


def test_kernel_packages_are_of_one_version(tmp_path: Path, repository: Repository) -> None:
    for abi, version in (("6.12.9+deb12", "6.12.9-1"), ("6.12.10+deb12", "6.12.10-1"), ("6.12.11+deb12", "6.12.11-1")):
        repository.add(f"linux-image-{abi}-amd64-unsigned", version)
        repository.add(f"linux-image-{abi}-rt-amd64-unsigned", version)
    for version in ("6.12.9-1", "6.12.10-1", "6.12.12-1"):
        repository.add("linux-source-6.12", version)
    repository.publish()
    spec = DebianKernel(
        "", "test", "linux-source-6.12", r"linux-image-(6\.12\.\d+\+deb12)-amd64-unsigned", "linux-kbuild-{abi}"
    )
    found = newest_package_set("k", spec, open_apt(tmp_path))
    assert {package.version for package in found.packages} == {"6.12.10-1"}
    assert [package.name for package in found.packages] == [
        "linux-kbuild-6.12.10+deb12",
        "linux-headers-6.12.10+deb12-amd64",
        "linux-headers-6.12.10+deb12-common",
        "linux-image-6.12.10+deb12-amd64-unsigned",
        "linux-source-6.12",
    ]


def test_unreachable_mirror_is_one_line_with_a_mend(tmp_path: Path, repository: Repository) -> None:
    with pytest.raises(NoLists, match="package lists of test cannot be fetched") as caught:
        open_apt(tmp_path).versions("library")
    assert "apt-get update" in caught.value.mend


def test_private_configuration_keeps_off_the_system(tmp_path: Path, repository: Repository) -> None:
    repository.publish()
    apt = open_apt(tmp_path)
    apt.refresh()
    dump = subprocess.run(
        ["apt-config", "dump"], env={"APT_CONFIG": f"{apt.dir}/apt.conf"}, capture_output=True, text=True, check=True
    ).stdout
    settings = dict(line.rstrip(";").split(" ", 1) for line in dump.splitlines() if " " in line)
    for name in ("Dir::State", "Dir::State::status", "Dir::Cache", "Dir::Etc"):
        assert settings[name].strip('"').startswith(str(apt.dir))
    assert "Post-Invoke" not in dump
    assert settings["Acquire::http::Proxy"] == '"DIRECT"', "the machine's own settings were lost"
    assert (apt.dir / "apt.conf").stat().st_mode & 0o077 == 0


def test_a_shared_file_is_replaced_whole_and_only_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "apt.conf"
    apt_module._write_private(path, "first\n")
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.stat()
    with path.open() as reader:
        apt_module._write_private(path, "first\n")
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        apt_module._write_private(path, "second\n")
        assert reader.read() == "first\n"
    assert path.read_text() == "second\n"
    assert list(tmp_path.iterdir()) == [path]


def test_lists_that_were_removed_are_fetched_anew(tmp_path: Path, repository: Repository) -> None:
    repository.add("library", "1.0")
    repository.publish()
    first = open_apt(tmp_path)
    first.refresh()
    assert first.cache.remove_package_lists() == ["test"], "lists were removed from under their user"
    first.cache.close()
    assert first.cache.remove_package_lists() == []
    assert open_apt(tmp_path).versions("library") == [Package("library", "1.0")]
