# SPDX-License-Identifier: Apache-2.0
"""Manifests for tests: a repository and chains as people write them."""

from __future__ import annotations

import json
from typing import Any

from reconciler.model import HostFacts

DIGEST = "sha256:" + "0123456789abcdef" * 4
REPOSITORY = b"apiVersion: reconciler/v1alpha1\nkind: Repository\nmetadata: {name: corp-edge}\n"
EDGE = HostFacts(name="edge-1.corp.example", labels={"role": "edge"})
DB = HostFacts(name="db-1.corp.example", labels={"role": "db"})


def member(name: str = "limit", **fields: object) -> dict[str, Any]:
    """One member, as JSON."""
    package = {"name": "ratelimit", "version": "1.0.0", "digest": DIGEST}
    return {"name": name, "package": package, "program": "ratelimit", **fields}


def chain(name: str = "edge", **spec: object) -> dict[str, Any]:
    """A chain on XDP, as JSON; `spec` replaces whole fields, None takes them out."""
    fields: dict[str, object] = {
        "hosts": {"matchLabels": {"role": "edge"}},
        "priority": 100,
        "hook": {"type": "xdp", "interfaces": ["eth*"]},
        "members": [member()],
        **spec,
    }
    kept = {key: value for key, value in fields.items() if value is not None}
    return {"apiVersion": "reconciler/v1alpha1", "kind": "Chain", "metadata": {"name": name}, "spec": kept}


def text(*documents: object) -> bytes:
    """Documents as a file; JSON is YAML."""
    return "\n---\n".join(json.dumps(document, indent=1, ensure_ascii=False) for document in documents).encode()


def files(*documents: object, **more: bytes) -> dict[str, bytes]:
    """A repository with each document in a file of its own: chains/0.yaml, chains/1.yaml, …"""
    chains = {f"chains/{index}.yaml": text(document) for index, document in enumerate(documents)}
    return {"reconciler.yaml": REPOSITORY, **chains, **more}
