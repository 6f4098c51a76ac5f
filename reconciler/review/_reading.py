# SPDX-License-Identifier: Apache-2.0
"""Both trees of a review as read: chains, groups, acknowledgements, and which packages must be looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reconciler import manifest
from reconciler.review._chains import Pair, pairs

if TYPE_CHECKING:
    from reconciler._documents import Document
    from reconciler.model import Chain, PackageRef, PaperSigner
    from reconciler.review._values import Tree


@dataclass(slots=True)
class Side:
    """One tree as read.

    Attributes:
        chains: by name; of chains that stand twice, the first.
        documents: by the chain's name.
    """

    tree: Tree
    validation: manifest.Validation
    groups: manifest.Groups
    chains: dict[str, Chain] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for chain, document in zip(self.validation.chains, self.validation.documents, strict=True):
            self.chains.setdefault(chain.name, chain)
            self.documents.setdefault(chain.name, document)


def read_side(tree: Tree, known: manifest.Known, groups: manifest.KnownGroups) -> Side:
    """A tree's chains, groups and acknowledgements; never raises.

    Args:
        tree: as bytes.
        known: files that were read for the other side already; most are the same.
        groups: likewise, below hosts/.
    """
    hosts = tuple(each for each in tree.problems if f"{each.file}/".startswith(manifest.HOSTS_FOLDER))
    others = tuple(each for each in tree.problems if each not in hosts)
    return Side(
        tree=tree,
        validation=manifest.parse_all(tree.files, problems=others, known=known),
        groups=manifest.parse_groups(tree.files, problems=hosts, known=groups),
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """Both trees as read, before anybody looked at packages.

    Attributes:
        changed: the chains that differ.
    """

    base: Side
    head: Side
    changed: tuple[Pair, ...]

    @property
    def signers(self) -> tuple[PaperSigner, ...]:
        """The signer rules of BASE's groups: those of HEAD vouch for nothing in the same change."""
        return tuple(rule for group in self.base.groups.groups for rule in group.policy.signers or ())

    @property
    def roots(self) -> dict[str, bytes]:
        """The trust roots that these rules name, by path; BASE's own, for the same reason."""
        files = self.base.tree.files
        return {rule.root: files[rule.root] for rule in self.signers if rule.root is not None and rule.root in files}

    @property
    def exchanged(self) -> frozenset[PackageRef]:
        """Packages that some host may get, or leave behind: who signed these is what a reviewer asks."""
        return frozenset(ref for pair in self.changed for ref in _exchanged(pair.before, pair.after))

    @property
    def refs(self) -> tuple[frozenset[PackageRef], frozenset[PackageRef]]:
        """The packages that must be looked at, of each side: those of chains that differ or may share a hook."""
        kinds = {
            (chain.hook.kind, chain.hook.netns)
            for pair in self.changed
            for chain in (pair.before, pair.after)
            if chain is not None
        }
        old, new = (
            frozenset(
                member.package
                for chain in side.chains.values()
                if (chain.hook.kind, chain.hook.netns) in kinds
                for member in chain.members
            )
            for side in (self.base, self.head)
        )
        return old, new

    @property
    def kept(self) -> frozenset[PackageRef]:
        """The packages that both sides name: the same bytes, but perhaps signed by somebody else."""
        old, new = (
            {member.package for chain in side.chains.values() for member in chain.members}
            for side in (self.base, self.head)
        )
        return frozenset(old & new)


def _exchanged(before: Chain | None, after: Chain | None) -> frozenset[PackageRef]:
    old, new = _packages(before), _packages(after)
    # With another selector the same packages go to other hosts.
    return old ^ new if before is None or after is None or before.hosts == after.hosts else old | new


def _packages(chain: Chain | None) -> frozenset[PackageRef]:
    return frozenset(member.package for member in chain.members) if chain is not None else frozenset()


def read(base: Tree, head: Tree) -> Reading:
    """Both trees; never raises."""
    known: manifest.Known = {}
    groups: manifest.KnownGroups = {}
    old, new = read_side(base, known, groups), read_side(head, known, groups)
    _keep_unreadable(old, new)
    return Reading(old, new, pairs(old.chains, new.chains))


def _keep_unreadable(base: Side, head: Side) -> None:
    """Chains of files that HEAD has broken stand as they were: a failed parse is no removal."""
    broken = {finding.file for finding in head.validation.findings}
    kept = {
        name: chain
        for name, chain in base.chains.items()
        if name not in head.chains and (chain.file in broken or manifest.CHAINS_FOLDER.rstrip("/") in broken)
    }
    head.chains.update(kept)
    head.documents.update({name: base.documents[name] for name in kept})
