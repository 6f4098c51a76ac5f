# SPDX-License-Identifier: Apache-2.0
"""Checks that this environment holds exactly what requirements.lock says, from itself and not from the system.

The environment sees the system's packages (for bcc); an older copy there must not win over a locked one.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)", re.MULTILINE)


def findings(lock: Path) -> list[str]:
    """One line for each locked distribution that is absent, of another version, or outside of this environment."""
    found = []
    for name, version in PIN.findall(lock.read_text(encoding="utf-8")):
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            found.append(f"expected {name} {version}, got none")
            continue
        place = Path(str(distribution.locate_file(""))).resolve()
        if distribution.version != version or not place.is_relative_to(Path(sys.prefix).resolve()):
            found.append(f"expected {name} {version} in {sys.prefix}, got {distribution.version} in {place}")
    return found


if __name__ == "__main__":
    problems = findings(Path(sys.argv[1]))
    sys.stderr.writelines(f"check_lock: {line}\n" for line in problems)
    sys.exit(1 if problems else 0)
