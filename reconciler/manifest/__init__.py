# SPDX-License-Identifier: Apache-2.0
"""Manifests: bytes of a commit → validated values; every finding says file, line, column and JSON pointer.

Pure: no input or output, no clock, no knowledge of the host beyond `HostFacts`. What needs a package (whether it has
that program, whether it can honour that `proceedOn`) is checked in `plan`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing takes 4 ms to import
if TYPE_CHECKING:
    from reconciler.manifest._chains import MAX_WAIT
    from reconciler.manifest._explain import KINDS, explain
    from reconciler.manifest._groups import HOSTS_FOLDER, Groups, KnownGroups, parse_groups, policies_of
    from reconciler.manifest._objects import check_package
    from reconciler.manifest._packages import parse_package
    from reconciler.manifest._packet_tests import TESTS_FOLDER, PacketTest, parse_tests
    from reconciler.manifest._parse import (
        CHAINS_FOLDER,
        NO_CHAIN,
        REPOSITORY_FILE,
        Known,
        Validation,
        desired_of,
        parse,
        parse_all,
        state_digest,
    )
    from reconciler.manifest._select import hooks_meet, hosts_meet, interface_matches, selects
else:
    from reconciler._lazy import on_demand

    __getattr__ = on_demand(
        __name__,
        {
            "_chains": "MAX_WAIT",
            "_explain": "KINDS explain",
            "_groups": "HOSTS_FOLDER Groups KnownGroups parse_groups policies_of",
            "_objects": "check_package",
            "_packages": "parse_package",
            "_packet_tests": "TESTS_FOLDER PacketTest parse_tests",
            "_parse": "CHAINS_FOLDER NO_CHAIN REPOSITORY_FILE Known Validation desired_of parse parse_all state_digest",
            "_select": "hooks_meet hosts_meet interface_matches selects",
        },
    )

__all__ = [
    "CHAINS_FOLDER",
    "HOSTS_FOLDER",
    "KINDS",
    "MAX_WAIT",
    "NO_CHAIN",
    "REPOSITORY_FILE",
    "TESTS_FOLDER",
    "Groups",
    "Known",
    "KnownGroups",
    "PacketTest",
    "Validation",
    "check_package",
    "desired_of",
    "explain",
    "hooks_meet",
    "hosts_meet",
    "interface_matches",
    "parse",
    "parse_all",
    "parse_groups",
    "parse_package",
    "parse_tests",
    "policies_of",
    "selects",
    "state_digest",
]
