# SPDX-License-Identifier: MIT
"""Directive ``cli-help``: what ``python -m cpuattn --help`` and its commands print."""

import os
import re
import subprocess
import sys

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata


def output(*words: str) -> str:
    """Return what the command line prints for these words."""
    environment = os.environ | {"COLUMNS": "80", "NO_COLOR": "1", "PYTHON_COLORS": "0"}
    command = [sys.executable, "-m", "cpuattn", *words]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.rstrip()


class CliHelp(SphinxDirective):
    """One section for each command that the usage line lists."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        overview = output("--help")
        listed = re.search(r"\{([\w,-]+)\}", overview)
        if listed is None:
            raise self.error("python -m cpuattn --help lists no commands")
        found: list[nodes.Node] = [nodes.literal_block(overview, overview)]
        for name in listed[1].split(","):
            text = output(name, "--help")
            section = nodes.section(ids=[f"cpuattn-{name}"])
            section += nodes.title(name, name)
            section += nodes.literal_block(text, text)
            found.append(section)
        for block in (b for node in found for b in node.findall(nodes.literal_block)):
            block["language"] = "text"
        return found


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.add_directive("cli-help", CliHelp)
    return {"parallel_read_safe": True}
