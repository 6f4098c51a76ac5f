# SPDX-License-Identifier: Apache-2.0
"""What verbs read of this host without the agent's lock: its configuration if there is one, and what is ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.cli import DEFAULT_CONFIG
from reconciler.model import INVENTORY_VERSION, Inventory
from reconciler.state import decode_record, read_file

if TYPE_CHECKING:
    from reconciler.cli._group import Context
    from reconciler.config import Config


def config_if_any(context: Context) -> Config | None:
    """The host's configuration; None if nobody named one and there is none at the usual place.

    Raises:
        ConfigError: there is one, and it is not acceptable.
    """
    if context.config_path == DEFAULT_CONFIG and not Path(DEFAULT_CONFIG).exists():
        return None
    return context.config


def saved_inventory(state: Path, boot_id: str) -> Inventory:
    """What is owned in this boot, as the last pass saved it; nothing if there is no record of this boot.

    Raises:
        StateError: the record cannot be read.
    """
    data = read_file(state / "inventory.json")
    if data is None:
        return Inventory(boot_id=boot_id)
    saved = decode_record(data, Inventory, INVENTORY_VERSION, "inventory.json")
    return saved if saved.boot_id == boot_id else Inventory(boot_id=boot_id)
