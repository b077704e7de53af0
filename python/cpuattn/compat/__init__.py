# SPDX-License-Identifier: MIT
"""Drop-ins: the attention of other systems, with their signatures and semantics."""
