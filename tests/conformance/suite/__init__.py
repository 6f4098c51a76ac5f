# SPDX-License-Identifier: Apache-2.0
"""What the `Kernel` protocol promises, as tests that take a `lab`.

A module that provides a `lab` fixture runs all of it with `from tests.conformance.suite import *`.
"""

from tests.conformance.suite._common import pytest_generate_tests as pytest_generate_tests  # a hook
from tests.conformance.suite.attaching import *  # noqa: F403
from tests.conformance.suite.loading import *  # noqa: F403
from tests.conformance.suite.observing import *  # noqa: F403
from tests.conformance.suite.removing import *  # noqa: F403
from tests.conformance.suite.switching import *  # noqa: F403
