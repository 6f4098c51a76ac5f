# SPDX-License-Identifier: Apache-2.0
"""Loading: nobody but root and the user may have been able to write the configuration or what it names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reconciler import config
from reconciler.config import _load
from reconciler.errors import ConfigError

TEXT = """\
apiVersion: reconciler/v1alpha1
kind: Config
spec:
  source: {url: "https://git.example/x"}
  trust:
    commits: {allowedSigners: keys/allowed_signers}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a configuration that is in order."""
    place = tmp_path / "etc"
    (place / "keys").mkdir(parents=True, mode=0o755)
    (place / "config.yaml").write_text(TEXT)
    (place / "keys/allowed_signers").write_text("alice ssh-ed25519 AAAA\n")
    for path in (place, place / "keys", place / "config.yaml", place / "keys/allowed_signers"):
        path.chmod(0o755)
    return place


def refusal(folder: Path, owner: int | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load_config(folder / "config.yaml", owner=owner)
    return str(caught.value)


def test_files_that_are_named_become_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.load_config(folder / "config.yaml").trust.commits.allowed_signers == b"alice ssh-ed25519 AAAA\n"
    monkeypatch.chdir(folder)
    assert config.load_config("config.yaml") == config.load_config(folder / "config.yaml")


@pytest.mark.parametrize("name", ["config.yaml", "keys/allowed_signers", "keys", "."])
@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_what_others_can_write_is_refused(folder: Path, name: str, mode: int) -> None:
    (folder / name).chmod(mode)
    assert f"expected nobody else to be able to write it, got mode {mode:04o}; run chmod go-w" in refusal(folder)


def test_a_sticky_folder_on_the_way_is_fine_but_its_files_are_looked_at(folder: Path) -> None:
    folder.chmod(0o1777)
    assert config.load_config(folder / "config.yaml").source.url == "https://git.example/x"
    (folder / "config.yaml").chmod(0o1766)
    assert "expected nobody else to be able to write it, got mode 1766" in refusal(folder)


@pytest.mark.parametrize("name", ["config.yaml", "keys/allowed_signers", "keys", "."])
def test_what_another_user_owns_is_refused(folder: Path, name: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a file away needs root")
    os.chown(folder / name, 12345, 12345)
    said = refusal(folder)
    assert "expected it to be owned by root, got uid 12345; chown it" in said
    # Whoever runs the reconciler may own it.
    assert config.load_config(folder / "config.yaml", owner=12345).trust.commits.allowed_signers


def test_a_link_is_followed_and_its_target_is_looked_at(folder: Path) -> None:
    real = folder / "keys/real"
    (folder / "keys/allowed_signers").rename(real)
    (folder / "keys/allowed_signers").symlink_to("real")
    assert config.load_config(folder / "config.yaml").trust.commits.allowed_signers == b"alice ssh-ed25519 AAAA\n"
    real.chmod(0o666)
    assert "expected nobody else to be able to write it" in refusal(folder)


def test_a_link_in_a_folder_that_others_can_write_is_refused(folder: Path) -> None:
    open_folder = folder.parent / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    (open_folder / "config.yaml").symlink_to(folder / "config.yaml")
    assert f"{open_folder}: expected nobody else to be able to write it, got mode 0777" in refusal(open_folder)


def test_a_missing_file_is_named_where_it_is_named(folder: Path) -> None:
    (folder / "keys/allowed_signers").unlink()
    said = refusal(folder)
    assert said.startswith(f"{folder}/config.yaml:6:31: expected a readable file, got an error: No such file or dir")
    assert f"({folder}/keys/allowed_signers)" in said
    assert "(at /spec/trust/commits/allowedSigners)" in said
    (folder / "config.yaml").unlink()
    said = refusal(folder)
    assert said.startswith(f"{folder}/config.yaml: expected a readable file, got an error: No such file or directory; ")
    assert said.endswith("; name another one with --config or RECONCILER_CONFIG; `reconciler init DIR` writes one")


def test_what_is_no_file_is_refused_without_hanging(folder: Path) -> None:
    (folder / "config.yaml").unlink()
    os.mkfifo(folder / "config.yaml", 0o600)
    assert "expected a regular file, got something else" in refusal(folder)
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").mkdir(mode=0o755)
    assert "expected a re" in refusal(folder)
    (folder / "config.yaml").rmdir()
    (folder / "config.yaml").symlink_to("config.yaml")
    assert "expected a readable file, got an error" in refusal(folder)


def test_a_file_that_is_too_large_is_refused(folder: Path) -> None:
    (folder / "keys/allowed_signers").write_bytes(b"#" * (_load.MAX_FILE + 1))
    assert f"expected at most {_load.MAX_FILE} bytes, got more" in refusal(folder)


# --- half a file -------------------------------------------------------------------------------------------

EXAMPLE = Path(__file__).parents[2] / "examples" / "host" / "config.yaml"


def half_files() -> list[bytes]:
    """The example, cut off at the end and in the middle of each of its lines."""
    lines = EXAMPLE.read_bytes().splitlines(keepends=True)
    whole = [b"".join(lines[:index]) for index in range(len(lines))]
    return [cut for start, line in zip(whole, lines, strict=True) for cut in (start, start + line[: len(line) // 2])]


def test_half_a_file_is_refused_or_trusts_nobody_whom_the_whole_one_does_not() -> None:
    def parse(data: bytes) -> config.Config:
        return config.parse_config(data, file="config.yaml", folder="/etc", read=str.encode)

    whole, refused, cuts = parse(EXAMPLE.read_bytes()), 0, half_files()
    tolerated = {rule.name for rule in whole.secure.tolerations}
    for data in cuts:
        try:
            half = parse(data)
        except ConfigError:
            refused += 1
            continue
        assert set(half.trust.signers) <= set(whole.trust.signers)
        assert half.trust.commits.allowed_signers in {whole.trust.commits.allowed_signers, b""}
        assert {rule.name for rule in half.secure.tolerations} <= tolerated
        assert half.secure.mode in {whole.secure.mode, config.SecureMode.AUDIT}
    assert refused > len(cuts) / 2
