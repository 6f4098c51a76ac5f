#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Checks that documents which are generated from the schemas are current. The generator is scripts/generate_docs.py;
# with --check it writes nothing, and names and refuses what differs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -f scripts/generate_docs.py ]]; then
    .venv/bin/python scripts/generate_docs.py --check
else
    echo "check_generated: there is no scripts/generate_docs.py yet"
fi
