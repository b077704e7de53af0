# SPDX-License-Identifier: MIT
"""Packages that only some functions need."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, purpose: str) -> Any:
    """Import a module, or say what needs its package and how to get it.

    Parameters
    ----------
    module : str
        Name of the module.
    purpose : str
        What needs it: the subject of the error text.

    Returns
    -------
    module

    Raises
    ------
    ImportError
        It cannot be imported.

    Examples
    --------
    >>> from cpuattn.compat._optional import require
    >>> require("math", "this example").sqrt(4.0)
    2.0
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{purpose} needs {package}, which cannot be imported ({error}); "
            f"pip install {package}"
        ) from error
