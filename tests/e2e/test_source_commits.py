# SPDX-License-Identifier: Apache-2.0
"""Signatures of commits made by real git and ssh-keygen, and every way known to write one commit twice."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reconciler.errors import (
    ConfigError,
    ExitCode,
    IdentityError,
    RevokedError,
    SignatureError,
    TrustError,
)
from reconciler.model import Signer
from reconciler.trust import _commits, verify_commit
from tests.e2e.servers import GitRepository, allowed_signers, ssh_key

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FILES: dict[str, bytes | tuple[str, str]] = {"reconciler.yaml": b"kind: Repository\n"}
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    kinds = {"alice": "ed25519", "bob": "ed25519", "mallory": "ed25519", "ec": "ecdsa", "rsa": "rsa"}
    return {name: ssh_key(folder / name, kind) for name, kind in kinds.items()}


@pytest.fixture
def repository(tmp_path: Path) -> GitRepository:
    return GitRepository(tmp_path / "policy.git")


def verify(
    repository: GitRepository, commit: str, allowed: bytes, revoked: bytes | None = None, now: datetime = NOW
) -> Signer:
    return verify_commit(repository.raw(commit), commit=commit, allowed_signers=allowed, revoked=revoked, now=now)


def git_accepts(repository: GitRepository, commit: str, allowed: bytes, folder: Path) -> bool:
    """What plain git says, to show that a test's variant is one that matters."""
    file = folder / "allowed"
    file.write_bytes(allowed)
    done = subprocess.run(
        ["git", f"--git-dir={repository.path}", "-c", f"gpg.ssh.allowedSignersFile={file}", "verify-commit", commit],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


# --- what is accepted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
@pytest.mark.parametrize("name", ["alice", "ec", "rsa"])
def test_a_signed_commit_names_its_signer(tmp_path: Path, keys: dict[str, Path], object_format: str, name: str) -> None:
    repository = GitRepository(tmp_path / "policy.git", object_format=object_format)
    first = repository.commit(FILES, key=keys[name])
    second = repository.commit(FILES, key=keys[name], message="subject\n\nbody\n")
    allowed = allowed_signers(**{name: keys[name]})
    public = Path(f"{keys[name]}.pub").read_text().split()[1]
    digest = base64.b64encode(hashlib.sha256(base64.b64decode(public)).digest()).decode().rstrip("=")
    for commit in (first, second):
        signer = verify(repository, commit, allowed)
        assert signer == Signer(name=f"{name}@example.com", identity=f"SHA256:{digest}", issuer="ssh")


def test_merges_encodings_and_empty_messages_are_canonical(repository: GitRepository, keys: dict[str, Path]) -> None:
    first = repository.commit(FILES, key=keys["alice"])
    other = repository.commit(FILES, key=keys["alice"], parents=(), ref=None, message="other")
    merge = repository.commit(FILES, key=keys["alice"], parents=(first, other), message="")
    latin = repository.git(
        "-c", "gpg.format=ssh", "-c", f"user.signingkey={keys['alice']}", "-c", "i18n.commitEncoding=ISO-8859-1",
        "commit-tree", "-S", repository.tree(FILES), stdin=b"M\xfcller\n",
    )  # fmt: skip
    for commit in (merge, latin):
        assert verify(repository, commit, allowed_signers(alice=keys["alice"])).name == "alice@example.com"


def test_the_first_of_several_principals_is_the_name(repository: GitRepository, keys: dict[str, Path]) -> None:
    commit = repository.commit(FILES, key=keys["alice"])
    public = Path(f"{keys['alice']}.pub").read_bytes()
    assert verify(repository, commit, b'alice@example.com,ops@example.com namespaces="git" ' + public).name in {
        "alice@example.com",
        "ops@example.com",
    }


def test_a_principal_is_compared_whole(repository: GitRepository, keys: dict[str, Path]) -> None:
    commit = repository.commit(FILES, key=keys["mallory"])
    allowed = (
        allowed_signers(foo=keys["alice"]) + b"foo@example.com.evil " + Path(f"{keys['mallory']}.pub").read_bytes()
    )
    assert verify(repository, commit, allowed).name == "foo@example.com.evil"


# --- who is refused ----------------------------------------------------------------------------------------


def test_an_unsigned_commit_is_refused_with_the_ways_of_merging_that_work(
    repository: GitRepository, keys: dict[str, Path]
) -> None:
    commit = repository.commit(FILES)
    with pytest.raises(SignatureError, match="fast-forward") as caught:
        verify(repository, commit, allowed_signers(alice=keys["alice"]))
    assert caught.value.reason == "Unsigned"
    assert caught.value.exit_code is ExitCode.SIGNATURE
    assert commit in str(caught.value)


def test_a_signed_tip_says_nothing_about_its_unsigned_parent(repository: GitRepository, keys: dict[str, Path]) -> None:
    parent = repository.commit(FILES)
    tip = repository.commit(FILES, key=keys["alice"])
    allowed = allowed_signers(alice=keys["alice"])
    assert verify(repository, tip, allowed).name == "alice@example.com"
    with pytest.raises(SignatureError):
        verify(repository, parent, allowed)


def test_an_empty_policy_allows_nobody(repository: GitRepository, keys: dict[str, Path]) -> None:
    commit = repository.commit(FILES, key=keys["alice"])
    for allowed in (b"", b"\n", b"# nobody\n"):
        with pytest.raises(IdentityError):
            verify(repository, commit, allowed)


def test_a_key_that_is_not_allowed_is_refused_although_ssh_keygen_says_good(
    repository: GitRepository, keys: dict[str, Path]
) -> None:
    commit = repository.commit(FILES, key=keys["mallory"])
    with pytest.raises(IdentityError, match="SHA256:") as caught:
        verify(repository, commit, allowed_signers(alice=keys["alice"]))
    assert caught.value.reason == "SignerNotAllowed"


@pytest.mark.parametrize(
    "option",
    [
        'namespaces="file"',
        'valid-before="20251231"',
        'valid-after="20260102"',
        'namespaces="git,file",valid-before="20200101"',
    ],
)
def test_options_of_the_allowed_signers_hold_at_the_present_time(
    repository: GitRepository, keys: dict[str, Path], option: str
) -> None:
    # The committer's date lies in 2023 and would be inside some of these; it does not count.
    commit = repository.commit(FILES, key=keys["alice"])
    with pytest.raises(IdentityError):
        verify(repository, commit, f"alice@example.com {option} ".encode() + Path(f"{keys['alice']}.pub").read_bytes())


def test_a_key_within_its_validity_is_accepted(repository: GitRepository, keys: dict[str, Path]) -> None:
    commit = repository.commit(FILES, key=keys["alice"])
    line = (
        b'alice@example.com valid-after="20251231",valid-before="20260102" ' + Path(f"{keys['alice']}.pub").read_bytes()
    )
    assert verify(repository, commit, line).name == "alice@example.com"
    with pytest.raises(IdentityError):
        verify(repository, commit, line, now=datetime(2026, 1, 3, tzinfo=UTC))


@pytest.mark.parametrize("kind", ["list", "krl"])
def test_a_revoked_key_is_refused_as_revoked(
    repository: GitRepository, keys: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    commit = repository.commit(FILES, key=keys["alice"])
    public = Path(f"{keys['alice']}.pub")
    revoked = b"# left the team\n" + public.read_bytes()
    if kind == "krl":
        subprocess.run(["ssh-keygen", "-q", "-k", "-f", str(tmp_path / "krl"), str(public)], check=True)
        revoked = (tmp_path / "krl").read_bytes()
    both = allowed_signers(alice=keys["alice"], bob=keys["bob"])
    with pytest.raises(RevokedError) as caught:
        verify(repository, commit, both, revoked)
    assert caught.value.reason == "SignerRevoked"
    honest = repository.commit(FILES, key=keys["bob"])
    assert verify(repository, honest, both, revoked).name == "bob@example.com"


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_bytes_of_another_commit_are_refused_however_well_they_are_signed(
    tmp_path: Path, keys: dict[str, Path], object_format: str
) -> None:
    repository = GitRepository(tmp_path / "other.git", object_format=object_format)
    first, second = (repository.commit({**FILES, "n": name}, key=keys["alice"]) for name in (b"1", b"2"))
    allowed = allowed_signers(alice=keys["alice"])
    raw = repository.raw(first)
    for content, commit in ((raw, second), (raw + b"\n", first), (raw, f"{int(first, 16) ^ 1:0{len(first)}x}")):
        with pytest.raises(SignatureError) as caught:
            verify_commit(content, commit=commit, allowed_signers=allowed, revoked=None, now=NOW)
        assert caught.value.reason == "CommitIdMismatch"
    with pytest.raises(SignatureError, match="40 or 64 hex digits"):
        verify_commit(raw, commit=first[:-1], allowed_signers=allowed, revoked=None, now=NOW)


def test_an_empty_revocation_file_revokes_nobody(repository: GitRepository, keys: dict[str, Path]) -> None:
    commit = repository.commit(FILES, key=keys["alice"])
    for revoked in (b"", b"# none so far\n"):
        assert verify(repository, commit, allowed_signers(alice=keys["alice"]), revoked).issuer == "ssh"


def test_policy_files_that_cannot_be_read_are_the_hosts_fault(repository: GitRepository, keys: dict[str, Path]) -> None:
    commit = repository.commit(FILES, key=keys["alice"])
    allowed = allowed_signers(alice=keys["alice"])
    for revoked in (b"not a key\n", b"ssh-ed25519 !!!\n", b"ssh-ed25519 QUJD\n", b"\0\0\0"):
        with pytest.raises(ConfigError, match="revoked signers, line 1"):
            verify(repository, commit, allowed, revoked)
    with pytest.raises(ConfigError, match="NUL"):
        verify(repository, commit, b"\0" + allowed)


def test_a_broken_krl_refuses(repository: GitRepository, keys: dict[str, Path]) -> None:
    commit = repository.commit(FILES, key=keys["alice"])
    with pytest.raises(TrustError):
        verify(repository, commit, allowed_signers(alice=keys["alice"]), b"SSHKRL\n\0" + b"\xff" * 40)


# --- other signatures --------------------------------------------------------------------------------------


def with_signature(raw: bytes, armour: bytes, header: bytes = b"gpgsig") -> bytes:
    """A commit with (another) signature, as git would write it."""
    head, _, message = raw.partition(b"\n\n")
    return head + b"\n" + header + b" " + armour.rstrip(b"\n").replace(b"\n", b"\n ") + b"\n\n" + message


def payload_of(raw: bytes) -> bytes:
    head, _, message = raw.partition(b"\n\n")
    return head.partition(b"\ngpgsig ")[0] + b"\n\n" + message


def armour_of(raw: bytes) -> bytes:
    head = raw.partition(b"\n\n")[0]
    return head.partition(b"\ngpgsig ")[2].replace(b"\n ", b"\n") + b"\n"


def sign(payload: bytes, key: Path, namespace: str = "git") -> bytes:
    done = subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", str(key)],
        input=payload,
        capture_output=True,
        check=True,
    )
    return done.stdout


def test_a_pgp_signature_is_refused_before_any_verifier_runs(
    repository: GitRepository, keys: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_commits, "SSH_KEYGEN", "/nonexistent/ssh-keygen")
    raw = repository.raw(repository.commit(FILES))
    armour = b"-----BEGIN PGP SIGNATURE-----\n\niHUEABYKAB0WIQ==\n=abcd\n-----END PGP SIGNATURE-----\n"
    commit = repository.write_commit(with_signature(raw, armour))
    with pytest.raises(SignatureError, match="merge bot with an SSH key") as caught:
        verify(repository, commit, allowed_signers(alice=keys["alice"]))
    assert caught.value.reason == "SignatureKindRefused"
    assert "PGP" in str(caught.value)


@pytest.mark.parametrize("begin", [b"-----BEGIN SIGNED MESSAGE-----", b"-----BEGIN PKCS7-----", b"junk", b""])
def test_any_other_kind_of_signature_is_refused(repository: GitRepository, keys: dict[str, Path], begin: bytes) -> None:
    commit = repository.write_commit(with_signature(repository.raw(repository.commit(FILES)), begin + b"\nAAAA\n"))
    with pytest.raises(SignatureError) as caught:
        verify(repository, commit, allowed_signers(alice=keys["alice"]))
    assert caught.value.reason == "SignatureKindRefused"


def test_a_signature_for_another_namespace_is_refused(repository: GitRepository, keys: dict[str, Path]) -> None:
    raw = repository.raw(repository.commit(FILES))
    for namespace in ("file", "git ", "Git"):
        commit = repository.write_commit(with_signature(raw, sign(raw, keys["alice"], namespace)))
        with pytest.raises(SignatureError, match="namespace"):
            verify(repository, commit, b"alice@example.com " + Path(f"{keys['alice']}.pub").read_bytes())


def test_a_signature_over_other_bytes_is_refused(repository: GitRepository, keys: dict[str, Path]) -> None:
    raw = repository.raw(repository.commit(FILES, key=keys["alice"], message="limit: 1000\n"))
    commit = repository.write_commit(raw.replace(b"limit: 1000", b"limit: 9999"))
    with pytest.raises(SignatureError) as caught:
        verify(repository, commit, allowed_signers(alice=keys["alice"]))
    assert caught.value.reason == "BadSignature"


def test_the_bytes_must_be_those_of_the_id(repository: GitRepository, keys: dict[str, Path]) -> None:
    raw = repository.raw(repository.commit(FILES, key=keys["alice"]))
    other = repository.commit(FILES, key=keys["alice"], message="other")
    for commit in (other, "0" * 40, "0" * 64, "main", ""):
        with pytest.raises(SignatureError):
            verify_commit(
                raw, commit=commit, allowed_signers=allowed_signers(alice=keys["alice"]), revoked=None, now=NOW
            )


# --- one commit, two ids -----------------------------------------------------------------------------------


def rewrapped(armour: bytes) -> bytes:
    begin, *body, end = armour.rstrip(b"\n").split(b"\n")
    text = b"".join(body)
    return b"\n".join([begin, *(text[at : at + 64] for at in range(0, len(text), 64)), end, b""])


def reencoded(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def alter(raw: bytes) -> bytes:
        body = b"".join(armour_of(raw).split(b"\n")[1:-2])
        text = base64.b64encode(change(base64.b64decode(body)))
        lines = [text[at : at + 70] for at in range(0, len(text), 70)]
        armour = b"\n".join([b"-----BEGIN SSH SIGNATURE-----", *lines, b"-----END SSH SIGNATURE-----", b""])
        return with_signature(payload_of(raw), armour)

    return alter


def unreduced(blob: bytes) -> bytes:
    """S + L instead of S: the same point, another spelling."""
    scalar = int.from_bytes(blob[-32:], "little") + ED25519_ORDER
    return blob[:-32] + scalar.to_bytes(32, "little")


def moved_first(raw: bytes) -> bytes:
    head, _, message = payload_of(raw).partition(b"\n\n")
    tree, _, rest = head.partition(b"\n")
    signature = b"gpgsig " + armour_of(raw).rstrip(b"\n").replace(b"\n", b"\n ")
    return tree + b"\n" + signature + b"\n" + rest + b"\n\n" + message


def dangling_bits(raw: bytes) -> bytes:
    """The last base64 group holds bits that decode to nothing; set one."""
    lines = armour_of(raw).split(b"\n")
    last = lines[-3]
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    at = len(last.rstrip(b"=")) - 1
    last = last[:at] + bytes([alphabet[alphabet.index(last[at]) ^ 1]]) + last[at + 1 :]
    return with_signature(payload_of(raw), b"\n".join([*lines[:-3], last, *lines[-2:]]))


VARIANTS: dict[str, tuple[Callable[[bytes], bytes], bool]] = {
    # name: (what is done, whether git 2.39 with OpenSSH 9.2 says that the signature is good nevertheless)
    "gpgsig twice": (lambda raw: with_signature(raw, armour_of(raw)), True),
    "gpgsig-sha256 with junk": (lambda raw: with_signature(raw, b"junk", b"gpgsig-sha256"), True),
    "gpgsig-sha256 with the signature": (lambda raw: with_signature(raw, armour_of(raw), b"gpgsig-sha256"), True),
    "wrapped at 64 columns": (lambda raw: with_signature(payload_of(raw), rewrapped(armour_of(raw))), True),
    "armour on one line": (
        lambda raw: with_signature(
            payload_of(raw),
            armour_of(raw)
            .replace(b"\n", b"")
            .replace(b"-----BEGIN SSH SIGNATURE-----", b"-----BEGIN SSH SIGNATURE-----\n")
            .replace(b"-----END", b"\n-----END"),
        ),
        True,
    ),
    "blanks in the armour": (lambda raw: raw.replace(b"\n U1NIU0lH", b"\n U1NI U0lH"), True),
    "a blank line after the armour": (
        lambda raw: raw.replace(b"END SSH SIGNATURE-----\n", b"END SSH SIGNATURE-----\n \n"),
        True,
    ),
    "text after the armour": (
        lambda raw: raw.replace(b"END SSH SIGNATURE-----\n", b"END SSH SIGNATURE-----\n x\n"),
        True,
    ),
    "text before the armour": (lambda raw: raw.replace(b"gpgsig -----BEGIN", b"gpgsig x\n -----BEGIN"), False),
    "the signature before the committer": (moved_first, True),
    "bits that decode to nothing": (dangling_bits, False),
    "bytes after the signature": (reencoded(lambda blob: blob + b"\0"), False),
    "an Ed25519 scalar that is not reduced": (reencoded(unreduced), True),
    "a NUL in the message": (lambda raw: raw + b"\0hidden", False),
    "carriage returns": (lambda raw: raw.replace(b"\n", b"\r\n"), False),
    "two trees": (lambda raw: raw.replace(b"author ", b"tree " + b"0" * 40 + b"\nauthor ", 1), False),
    "a parent after the author": (
        lambda raw: raw.replace(b"\ngpgsig", b"\nparent " + b"0" * 40 + b"\ngpgsig", 1),
        False,
    ),
    "a continuation first": (lambda raw: b" " + raw, False),
    "a header without a value": (lambda raw: raw.replace(b"\ngpgsig ", b"\nodd\ngpgsig ", 1), False),
    "GPGSIG in capitals": (lambda raw: with_signature(raw, armour_of(raw), b"GPGSIG"), False),
    "no message": (lambda raw: raw.partition(b"\n\n")[0], False),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_commit_that_is_written_another_way_is_refused(
    repository: GitRepository, keys: dict[str, Path], variant: str
) -> None:
    change, _ = VARIANTS[variant]
    honest = repository.commit(FILES, key=keys["alice"], message="change\n")
    raw = repository.raw(honest)
    allowed = allowed_signers(alice=keys["alice"])
    assert verify(repository, honest, allowed).name == "alice@example.com"
    altered = change(raw)
    commit = repository.write_commit(altered, ref=None)
    assert commit != honest
    with pytest.raises(SignatureError):
        verify_commit(altered, commit=commit, allowed_signers=allowed, revoked=None, now=NOW)


@pytest.mark.skipif(
    b"9.2" not in subprocess.run(["ssh", "-V"], capture_output=True, check=False).stderr,
    reason="measured with OpenSSH 9.2",
)
@pytest.mark.parametrize("variant", [name for name, (_, accepted) in VARIANTS.items() if accepted])
def test_plain_git_takes_these_variants_for_good(
    repository: GitRepository, keys: dict[str, Path], tmp_path: Path, variant: str
) -> None:
    honest = repository.commit(FILES, key=keys["alice"], message="change\n")
    commit = repository.write_commit(VARIANTS[variant][0](repository.raw(honest)), ref=None)
    assert git_accepts(repository, commit, allowed_signers(alice=keys["alice"]), tmp_path)


def test_in_a_sha256_repository_the_header_has_the_other_name(tmp_path: Path, keys: dict[str, Path]) -> None:
    repository = GitRepository(tmp_path / "policy.git", object_format="sha256")
    commit = repository.commit(FILES, key=keys["alice"])
    raw = repository.raw(commit)
    assert b"\ngpgsig-sha256 -----BEGIN SSH" in raw
    allowed = allowed_signers(alice=keys["alice"])
    for altered in (raw.replace(b"gpgsig-sha256", b"gpgsig"), with_signature(raw, b"junk")):
        other = repository.write_commit(altered)
        with pytest.raises(SignatureError) as caught:
            verify(repository, other, allowed)
        assert caught.value.reason == "CommitNotCanonical"


def test_signatures_of_another_key_type_than_the_key_are_refused(
    repository: GitRepository, keys: dict[str, Path]
) -> None:
    raw = repository.raw(repository.commit(FILES, key=keys["alice"]))
    swapped = reencoded(lambda blob: blob[:-83] + blob[-83:].replace(b"ssh-ed25519", b"ssh-ed25518"))(raw)
    commit = repository.write_commit(swapped)
    with pytest.raises(SignatureError, match="fits the key"):
        verify(repository, commit, allowed_signers(alice=keys["alice"]))


def test_certificates_are_not_accepted(repository: GitRepository, keys: dict[str, Path], tmp_path: Path) -> None:
    user = ssh_key(tmp_path / "user")
    subprocess.run(
        ["ssh-keygen", "-q", "-s", str(keys["bob"]), "-I", "id", "-n", "user@example.com", f"{user}.pub"],
        check=True, capture_output=True,
    )  # fmt: skip
    raw = repository.raw(repository.commit(FILES))
    done = subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", f"{user}-cert.pub"],
        input=raw,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    commit = repository.write_commit(with_signature(raw, done.stdout))
    allowed = b"*@example.com cert-authority " + Path(f"{keys['bob']}.pub").read_bytes()
    with pytest.raises(SignatureError, match="certificates"):
        verify(repository, commit, allowed)
