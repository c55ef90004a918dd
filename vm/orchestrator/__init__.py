# SPDX-License-Identifier: Apache-2.0
"""scripts/vm: a cluster of QEMU guests with soft-RoCE. docs/vm.md says how it works."""
