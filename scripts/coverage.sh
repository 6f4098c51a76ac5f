#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs the tests with branch coverage, child processes included, and holds it against our limits: 100 % of the pure
# core, 90 % overall. Arguments go to pytest. The report is build/coverage/index.html.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The pure core, as tests/unit/test_architecture.py reads it from the import contract.
mapfile -t pure < <(.venv/bin/python -c '
import tomllib
contracts = tomllib.load(open("pyproject.toml", "rb"))["tool"]["importlinter"]["contracts"]
names = next(each for each in contracts if each["id"] == "pure")["source_modules"]
print(*(f"{n}.py\n{n}/*" for n in (name.replace(".", "/") for name in names)), sep="\n")')

rm -rf build/coverage
.venv/bin/coverage run -m pytest -n 3 --dist worksteal --durations=15 "$@"
.venv/bin/coverage combine --quiet
.venv/bin/coverage html --quiet
status=0
echo "coverage: the pure core, 100 % expected"
.venv/bin/coverage report --include "$(IFS=,; echo "${pure[*]}")" --skip-covered --fail-under 100 || status=1
echo "coverage: everything, 90 % expected"
.venv/bin/coverage report --skip-covered --fail-under 90 || status=1
exit "$status"
