"""``python -m cpuattn info``: what `cpuattn.info` says, for people or as JSON."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .. import info


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    command = commands.add_parser(
        "info", help="CPU, instruction sets and why others are not usable, threads"
    )
    command.add_argument("--json", action="store_true", help="for bug reports")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the report; return the exit status."""
    found = info()
    print(json.dumps(found, indent=2) if options.json else as_text(found))
    return 0


def as_text(found: dict[str, Any]) -> str:
    """Write a report of `cpuattn.info` for people.

    Parameters
    ----------
    found : dict

    Returns
    -------
    str
        Lines of a heading and its facts.
    """
    quota = found["cgroup_cpus"]
    lines = [
        ("cpuattn", found["version"]),
        ("python", f"{found['python']}, NumPy {found['numpy']}, {found['platform']}"),
        ("cpu", f"{found['cpu']} ({', '.join(found['features']) or 'no features'})"),
        (
            "cpus",
            f"{found['cpus']} in the machine, {found['affinity']} by affinity, "
            + ("no cgroup quota" if quota is None else f"cgroup quota {quota:g}"),
        ),
        (
            "threads",
            f"{found['threads']}, from {found['threads_from']} "
            f"({found['thread_backend']})",
        ),
        ("isa", found["isa"]),
    ]
    for row in found["isas"]:
        state = row["reason"] or ("active" if row["name"] == found["isa"] else "usable")
        lines.append((f"  {row['name']}", state))
    for kind, files in found["thread_runtimes"].items():
        lines += [(kind, file) for file in files]
    lines += [("warning", text) for text in found["warnings"]]
    return "\n".join(f"{heading:13} {fact}" for heading, fact in lines)
