# SPDX-License-Identifier: Apache-2.0
"""Documents that people write: strict YAML, the schemas, and the few kinds of text in them that need a grammar.

Shared by `config` and `manifest`; it knows nothing of either. It does no input or output but reading our own schemas.
"""

from reconciler._documents._fields import Field, fields_of
from reconciler._documents._glob import Effort, EffortError, Glob, GlobError, parse_glob
from reconciler._documents._schema import API_VERSION, one_of, schema_of, show, validate
from reconciler._documents._text import parse_address, parse_duration, parse_share
from reconciler._documents._yaml import Document, escape, read_documents

__all__ = [
    "API_VERSION",
    "Document",
    "Effort",
    "EffortError",
    "Field",
    "Glob",
    "GlobError",
    "escape",
    "fields_of",
    "one_of",
    "parse_address",
    "parse_duration",
    "parse_glob",
    "parse_share",
    "read_documents",
    "schema_of",
    "show",
    "validate",
]
