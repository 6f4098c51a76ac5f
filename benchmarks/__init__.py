# SPDX-License-Identifier: Apache-2.0
"""Figures: what this program takes, beside what something simpler takes in the same run (docs/performance.md)."""
