# SPDX-License-Identifier: Apache-2.0
"""The state directory: one directory, one writer.

It says what is ours in the kernel (inventory), which commit counts (source), what operators decided (control), what a
running pass is about to do (journal) and what happened (history). It never says what is desired. Every file but the
two append-only ones is replaced atomically and carries a version: a newer one is refused (`StateVersionError`) and
then nothing is touched. Lost or unreadable files raise `StateError`; what that means is decided by `reconcile`.
"""

from reconciler.state._directory import (
    State,
    decode_record,
    open_state,
    read_file,
    read_history,
    read_status,
)
from reconciler.state._replay import candidate, recover, unproven

__all__ = [
    "State",
    "candidate",
    "decode_record",
    "open_state",
    "read_file",
    "read_history",
    "read_status",
    "recover",
    "unproven",
]
