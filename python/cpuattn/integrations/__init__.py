# SPDX-License-Identifier: MIT
"""Plug-ins that make models of other libraries use `cpuattn`."""
