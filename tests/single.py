# SPDX-License-Identifier: Apache-2.0
"""The kernel protocol's batches for tests of one step: what it made, or its error raised."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from reconciler.kernel import Kernel, Progress
    from reconciler.model import Attach, Detach, Identity, OwnedAttachment, Switch

T = TypeVar("T")


def attach_one(kernel: Kernel, step: Attach, first: Identity) -> OwnedAttachment:
    return _only(kernel.attach((step,), {step.generation: first}))


def switch_one(kernel: Kernel, step: Switch, first: Identity) -> OwnedAttachment:
    return _only(kernel.switch((step,), {step.generation: first}))


def detach_one(kernel: Kernel, step: Detach) -> None:
    _only(kernel.detach((step,)))


def is_alive(kernel: Kernel, owned: OwnedAttachment, first: Identity) -> bool:
    missing = kernel.not_alive((owned,), {owned.generation: first})
    assert missing in ((), (owned,))
    return not missing


def _only(progress: Progress[T]) -> T:
    if progress.error is not None:
        assert progress.done == ()
        raise progress.error
    (made,) = progress.done
    return made
