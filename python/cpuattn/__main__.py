"""Command line: ``python -m cpuattn info | selftest | bench``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ._cli import bench, report, selftest


def parser() -> argparse.ArgumentParser:
    """Describe the command line.

    Returns
    -------
    argparse.ArgumentParser
        Parses into a namespace whose `run` takes it and returns the exit status.
    """
    top = argparse.ArgumentParser(
        prog="python -m cpuattn",
        description="What cpuattn is on this machine, whether it is right, how fast.",
        # keeps --cmake-dir in one line
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "--cmake-dir",
        action="version",
        version=str(Path(__file__).parent / "lib" / "cmake" / "cpuattn"),
        help="print where find_package finds the C library that the wheel carries",
    )
    commands = top.add_subparsers(dest="command", required=True)
    for command in (report, selftest, bench):
        command.add_to(commands)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one of the commands.

    Parameters
    ----------
    argv : list of str, optional
        Arguments after the program's name; those of the process by default.

    Returns
    -------
    int
        The exit status: 0 on success, 1 when `selftest` found an error.
    """
    options = parser().parse_args(argv)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read the output has gone, as `| head` does; Python flushes once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
