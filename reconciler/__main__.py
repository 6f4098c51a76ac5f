# SPDX-License-Identifier: Apache-2.0
"""`python -m reconciler`: the same command where no console script is installed."""

from reconciler.cli import main

if __name__ == "__main__":
    main()
