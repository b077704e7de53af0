#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Check the object files of a release build against the rules for per-ISA code.

Usage: tools/check_symbols.py BUILD_DIR [--prefix aarch64-linux-gnu-]

A function that the linker may share between object files (weak, unique) can be taken
from the one compiled for AVX-512 and then crash a CPU without it; so may code that runs
before the CPU is known. Hence each object of cpp/kernels/isa defines one external
symbol, no weak or unique one, and no static initializer; and what every CPU runs
(cpp/core, cpp/capi, cpp/bindings, the scalar kernels) holds no AVX instruction.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

BASELINE = ("cpp/core/", "cpp/capi/", "cpp/bindings/", "cpp/kernels/isa/scalar")
INITIALIZER = re.compile(r"\s(\.(?:init_array|preinit_array|ctors)\S*)\s")
# An instruction line of objdump: address, tab, mnemonic and operands.
AVX = re.compile(r"^\s*[0-9a-f]+:\t(v\w+.*|.*%[yz]mm\d.*)$", re.MULTILINE)


def table_pattern(isa: str) -> re.Pattern[str]:
    """Return what the demangled name of an ISA's kernel table must match."""
    return re.compile(rf"cpuattn.*{isa}(?!\w*bf16)")


def objects(build_dir: Path, source: str) -> list[Path]:
    """Return the object files of all sources below a folder, or of one source."""
    found = (path for path in build_dir.rglob("*.o") if f"/{source}" in path.as_posix())
    return sorted(found)


def output(*command: str | Path) -> str:
    """Return what a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def symbol_faults(path: Path, prefix: str) -> list[str]:
    """Return the faults among the symbols and sections of one ISA's object."""
    faults = []
    isa = path.name.removesuffix(".o").removesuffix(".cpp")
    lines = output(f"{prefix}nm", "--extern-only", "--defined-only", "--demangle", path)
    symbols = [line.split(maxsplit=2)[1:] for line in lines.splitlines()]
    shared = [name for kind, name in symbols if kind in "VvWwu"]
    owned = [name for kind, name in symbols if kind not in "VvWwu"]
    faults += [f"{path}: weak or unique symbol: {name}" for name in shared]
    if len(owned) != 1 or not table_pattern(isa).search(owned[0]):
        faults.append(
            f"{path}: must define one external symbol, the kernel table of {isa};"
            f" got {owned}"
        )
    sections = output(f"{prefix}readelf", "--section-headers", "--wide", path)
    faults += [
        f"{path}: static initializer in section {name}"
        for name in INITIALIZER.findall(sections)
    ]
    return faults


def instruction_faults(path: Path, prefix: str) -> list[str]:
    """Return the first AVX instruction of an object that every x86-64 CPU runs."""
    match = AVX.search(output(f"{prefix}objdump", "-d", "--no-show-raw-insn", path))
    return [f"{path}: AVX instruction: {match[1].strip()}"] if match else []


def check(build_dir: Path, prefix: str = "") -> list[str]:
    """Return all faults of a build, one line each."""
    isa_objects = objects(build_dir, "cpp/kernels/isa/")
    baseline = [path for source in BASELINE for path in objects(build_dir, source)]
    if not isa_objects or not objects(build_dir, "cpp/core/"):
        return [f"{build_dir}: no objects of cpp/kernels/isa and cpp/core"]
    faults = [fault for path in isa_objects for fault in symbol_faults(path, prefix)]
    return faults + [
        fault for path in baseline for fault in instruction_faults(path, prefix)
    ]


def main() -> None:
    """Print the faults; exit with 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build_dir", type=Path)
    parser.add_argument("--prefix", default="", help="of nm, readelf and objdump")
    options = parser.parse_args()
    faults = check(options.build_dir, options.prefix)
    print("\n".join(faults) or f"{options.build_dir}: symbols are as they should be")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
