# SPDX-License-Identifier: Apache-2.0
"""One suite of what the `Kernel` protocol promises, on the fake (tests/sim) and on the real kernel (tests/kernel)."""

import pytest

pytest.register_assert_rewrite("tests.conformance.suite", "tests.conformance.lab")
