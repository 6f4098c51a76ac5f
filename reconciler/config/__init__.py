# SPDX-License-Identifier: Apache-2.0
"""The host's own configuration: what only root on this host decides.

`parse_config` is pure; `load_config` and `read_protected` are the functions that open files. Keys, trust roots and
lists of signers become bytes inside the values, so that what is decided with them needs no file; credentials stay
paths.
"""

from reconciler.config._load import load_config, read_protected
from reconciler.config._parse import parse_config
from reconciler.config._tolerations import parse_tolerations, shipped_names, shipped_tolerations
from reconciler.config._values import (
    Auth,
    CommitTrust,
    Config,
    Control,
    FolderRepository,
    Guardrail,
    HttpsRepository,
    Metrics,
    Paths,
    Repository,
    SecureConfig,
    SecureMode,
    SourceConfig,
    Toleration,
    Trust,
    Warn,
    trust_digest,
)
from reconciler.config.signers import IdentityRule, KeyRule, Revoked, SignerRule

__all__ = [
    "Auth",
    "CommitTrust",
    "Config",
    "Control",
    "FolderRepository",
    "Guardrail",
    "HttpsRepository",
    "IdentityRule",
    "KeyRule",
    "Metrics",
    "Paths",
    "Repository",
    "Revoked",
    "SecureConfig",
    "SecureMode",
    "SignerRule",
    "SourceConfig",
    "Toleration",
    "Trust",
    "Warn",
    "load_config",
    "parse_config",
    "parse_tolerations",
    "read_protected",
    "shipped_names",
    "shipped_tolerations",
    "trust_digest",
]
