# SPDX-License-Identifier: Apache-2.0
"""Who signed the packages of a change, and whether a group's policy takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler._documents import parse_glob
from reconciler.policy import matches_identity
from reconciler.review._effects import Effects, Note
from reconciler.review._hooks import ChainNote
from reconciler.review._values import Line, ReviewPackage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.model import PackageRef, PaperSigner
    from reconciler.review._fleet import Hosts
    from reconciler.review._values import Packages


SHOWN_DIGEST: Final = 19
"""Characters of a digest that are shown: "sha256:" and twelve hex digits."""


def signer_words(package: ReviewPackage) -> str | None:
    """Identity and issuer, and whether that is only what the bundle says; None without a signer."""
    signer = package.signer
    if signer is None:
        return None
    return f"{signer.identity} ({signer.issuer}){'' if package.verified else ', as claimed'}"


def package_words(ref: PackageRef, found: ReviewPackage | None) -> str:
    """What a new member brings: "sha256:…, signed by …"."""
    digest = ref.digest[:SHOWN_DIGEST]
    return digest if found is None else f"{digest}, signed by {signer_words(found) or 'nobody'}"


def compare_signers(before: ReviewPackage | None, after: ReviewPackage | None, effects: Effects) -> None:
    """A line and a finding when the package of a member is signed by somebody else, even if it is the same package."""
    if before is None or after is None:
        return
    # Of other bytes RV042 says that nobody verified them; of the same ones nothing else would.
    unproven = before.ref == after.ref and before.verified and not after.verified
    same = _who(before) == _who(after) and not unproven
    old, new = signer_words(before), signer_words(after)
    if not same or before.ref != after.ref:
        # Of other bytes it is said who vouches for them, be it the same as before.
        effects.lines.append(Line(what="signer", before=old or "nobody", after=new or "nobody", member=effects.member))
    if same:
        return
    effects.note("RV022", f"signed by {new or 'nobody'}, before by {old or 'nobody'}", "/package")


def _who(package: ReviewPackage) -> tuple[str, str] | None:
    return None if package.signer is None else (package.signer.identity, package.signer.issuer)


def judge_signers(hosts: Hosts, packages: Packages) -> Iterator[ChainNote]:
    """Packages that a cohort gets with HEAD and that its group's policy would not take; others may have them already.

    Args:
        hosts: a cohort.
        packages: of HEAD.
    """
    rules = hosts.group.policy.signers if hosts.group is not None else None
    if rules is None:
        return
    seen = {member.package.digest for chain in hosts.before for member in chain.members}
    for chain in hosts.after:
        for index, member in enumerate(chain.members):
            ref = member.package
            found = packages.get(ref)
            if ref.digest in seen or not isinstance(found, ReviewPackage):
                continue
            seen.add(ref.digest)
            if not any(allows(rule, ref.name, found) for rule in rules):
                who = signer_words(found) or "nobody"
                message = (
                    f"package {ref.name} {ref.version} is signed by {who}, whom no signer rule of the group allows"
                )
                note = Note(id="RV004", message=message, member=member.name, pointer=f"/spec/members/{index}/package")
                yield ChainNote(chain=chain.name, note=note)


def allows(rule: PaperSigner, package: str, found: ReviewPackage) -> bool:
    """Whether a rule lets the signer of `found` sign `package`; one that can be verified must be."""
    signer = found.signer
    if signer is None or not any(parse_glob(glob).matches(package) for glob in rule.packages):
        return False
    if rule.key is not None:
        known = found.verified or rule.public_key is None
        return known and signer.issuer == "key" and signer.identity == rule.key
    known = rule.root is None or rule.root in found.roots
    return known and rule.issuer == signer.issuer and matches_identity(rule.identity or "", signer.identity)
