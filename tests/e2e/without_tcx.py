# SPDX-License-Identifier: Apache-2.0
"""The command `reconciler` on a kernel that answers "no" to the probe for tcx: tc chains use clsact and cls_bpf."""

from __future__ import annotations

from typing import Any

from reconciler import cli
from reconciler.cli import _compose
from reconciler.kernel import linux
from reconciler.model import Support


class WithoutTcx(linux.LinuxKernel):
    """This host's kernel, but for tcx."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest, force={"tcx": Support.NO})


if __name__ == "__main__":
    # The composition root imports it when it needs it, or has it already.
    for module in (linux, _compose):
        vars(module)["LinuxKernel"] = WithoutTcx
    cli.main()
