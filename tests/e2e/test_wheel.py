# SPDX-License-Identifier: Apache-2.0
"""The wheel alone: built, installed into an empty environment, used far from the checkout, without a compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.lab import COMMAND_SECONDS, ROOT
from tests.kernel import support

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.lab import Kit

TOOLS = ("git", "ssh-keygen", "ip")
"""What a host needs besides Python and libbpf; clang and make are not among it."""


@pytest.fixture(scope="module")
def wheel(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout; `kit` made the packages that go into it."""
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in an environment that holds the wheel; its dependencies are those of the tests."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    support.run("/usr/bin/python3", "-m", "venv", "--without-pip", str(venv))
    python = str(venv / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--no-cache-dir"]
    support.run(*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    (packages,) = venv.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv / "bin" / "reconciler"


@pytest.fixture
def host() -> Iterator[support.Netns]:
    with support.netns() as made:
        yield made


def test_the_wheel_holds_what_ships(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for kind, folder in {"schema": "schema", "policies": "policies", "packages": "build/packages"}.items():
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        assert files
        for path in files:
            assert f"reconciler/_data/{kind}/{path.relative_to(ROOT / folder)}" in names
    assert "reconciler/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "bpf/", "demo/"))]


def test_a_host_needs_the_wheel_and_nothing_of_the_checkout(
    installed: Path, host: support.Netns, tmp_path: Path
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in TOOLS:
        found = support.run("sh", "-c", f"PATH=$PATH:/usr/sbin:/sbin command -v {name}").strip()
        (tools / name).symlink_to(found)
    environment = {"PATH": str(tools), "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("COV")}

    def run(*arguments: str, code: int = 0) -> Any:
        done = subprocess.run(
            ["/usr/bin/nsenter", f"--net=/run/netns/{host.name}", str(installed), "-o", "json", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
            timeout=COMMAND_SECONDS,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    where = [str(installed.with_name("python")), "-c", "import reconciler; print(reconciler.__file__)"]
    module = subprocess.run(where, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.strip()
    assert Path(module).is_relative_to(installed.parents[1])

    made = run("init", "policy")
    key = Path(made["keys"]) / "package.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    assert not key.is_relative_to(made["repository"])
    host.ip("link", "add", "rc-demo0", "type", "veth", "peer", "name", "rc-demo1")
    host.ip("link", "set", "dev", "rc-demo0", "up")
    host.ip("link", "set", "dev", "rc-demo1", "up")
    config = ("--config", made["config"])
    try:
        run("validate", "policy")
        assert [step["step"] for step in run(*config, "plan", code=2)["steps"]][:2] == ["load", "attach"]
        assert run(*config, "apply")["status"]["applied"]["id"] == made["commit"]
        assert run(*config, "apply")["status"]["reason"] == "InSync"
        (seen,) = run(*config, "observe", "--netns", "host")["attachments"]
        assert (seen["interface"], seen["whose"]) == ("rc-demo0", "owned")
    finally:
        run(*config, "teardown", "--yes")
    assert run(*config, "observe", "--netns", "host")["attachments"] == []
    text = Path(made["config"]).read_text()
    (pins,) = [line.split()[-1].rstrip("}") for line in text.splitlines() if line.strip().startswith("pins:")]
    assert not Path(pins).exists()
