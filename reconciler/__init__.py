# SPDX-License-Identifier: Apache-2.0
"""GitOps for eBPF: signed commits and packages in, exactly those programs in the kernel (docs/architecture.md)."""
