# SPDX-License-Identifier: MIT
"""Measure the rates of this machine's products and its memory read rate.

Compiles roofline.cpp at first use, once per ISA, into a cache directory and calls it
through ctypes. ``python bench/roofline.py`` prints the limits on their own.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cases import FloatArray, aligned_empty

SOURCE = Path(__file__).with_name("roofline.cpp")
BASE_FLAGS = ("-std=c++20", "-O3", "-Wno-psabi", "-fPIC", "-shared", "-pthread")
AVX512_FLAGS = (
    "-mavx512f",
    "-mprefer-vector-width=512",
    "-DROOFLINE_VECTOR_BYTES=64",
)
# The widest vectors first, then what only adds products.
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "avx512": AVX512_FLAGS,
    "avx2": ("-mavx2", "-mfma", "-DROOFLINE_VECTOR_BYTES=32"),
    "neon": ("-DROOFLINE_VECTOR_BYTES=16",),
    "generic": ("-DROOFLINE_VECTOR_BYTES=16",),
    "amx_bf16": (*AVX512_FLAGS, "-mamx-tile", "-mamx-bf16"),
    "avx512_bf16": (*AVX512_FLAGS, "-mavx512bf16"),
    "neon_bf16": ("-DROOFLINE_VECTOR_BYTES=16", "-march=armv8.2-a+bf16"),
}
BFLOAT16_UNITS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "bfloat16 dot",
    "neon_bf16": "BFMMLA",
}
PRODUCTS_PASS_SECONDS = 0.5e-3


@dataclass(frozen=True)
class Roof:
    """Name one rate of products: of which elements, by which instructions.

    Attributes
    ----------
    element : {"float32", "float64", "bfloat16"}
    isa : str
        A key of `ISA_FLAGS`.
    terms : int
        How many products stand for one useful product: "bfloat16 x3" makes a float32
        product of three of bfloat16.
    """

    element: str
    isa: str
    terms: int = 1

    def __str__(self) -> str:
        """Show as in the reports."""
        unit = BFLOAT16_UNITS.get(self.isa, "FMA")
        if self.element == "float64":
            unit = f"float64 {unit}"
        return unit + f" / {self.terms}" * (self.terms > 1)


@dataclass(frozen=True)
class ReadVariant:
    """Name one way to read memory: how many streams at once, how far ahead."""

    streams: int
    prefetch: int

    def __str__(self) -> str:
        """Show as in the reports."""
        plural = "s" if self.streams > 1 else ""
        ahead = f", prefetch {self.prefetch} B" if self.prefetch else ""
        return f"{self.streams} stream{plural}{ahead}"


READ_VARIANTS = (
    ReadVariant(1, 0),
    ReadVariant(1, 12288),
    ReadVariant(2, 0),
    ReadVariant(2, 12288),
    ReadVariant(4, 0),
    ReadVariant(4, 12288),
)


class RooflineError(RuntimeError):
    """Raised when the limits cannot be measured, with the reason."""


def cache_directory() -> Path:
    """Return the directory of the compiled kernels, created if needed."""
    root = os.environ.get("XDG_CACHE_HOME")
    base = Path(root) if root else Path.home() / ".cache"
    directory = base / "cpuattn-bench"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        directory = Path(tempfile.mkdtemp(prefix="cpuattn-bench-"))
    return directory


def compiler() -> list[str]:
    """Return the C++ compiler command, ``$CXX`` or ``c++``.

    Raises
    ------
    RooflineError
        If there is no such program.
    """
    command = shlex.split(os.environ.get("CXX", "c++"))
    if not command or shutil.which(command[0]) is None:
        raise RooflineError(
            f"roofline: needs a C++20 compiler; got none ({' '.join(command)!r} is not "
            "a program); install one, set CXX, or pass --no-roofs"
        )
    return command


@cache
def library(isa: str) -> ctypes.CDLL:
    """Compile and load roofline.cpp for one ISA.

    Parameters
    ----------
    isa : str
        A key of `ISA_FLAGS`.

    Returns
    -------
    ctypes.CDLL

    Raises
    ------
    RooflineError
        If there is no compiler or it fails.
    """
    command = [*compiler(), *BASE_FLAGS, *ISA_FLAGS[isa]]
    version = subprocess.run(
        [*compiler(), "--version"], capture_output=True, text=True, check=False
    ).stdout
    recipe = "\n".join([*command, version, platform.machine(), SOURCE.read_text()])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    target = cache_directory() / f"roofline-{isa}-{digest}.so"
    if not target.exists():
        # Compiled beside the target and renamed: two runs at once do no harm.
        partial = target.with_suffix(f".{os.getpid()}.tmp")
        done = subprocess.run(
            [*command, str(SOURCE), "-o", str(partial)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RooflineError(f"roofline: the compiler failed:\n{done.stderr}")
        partial.replace(target)
    loaded = ctypes.CDLL(str(target))
    loaded.roofline_flops_per_step.restype = ctypes.c_int64
    loaded.roofline_products.restype = None
    loaded.roofline_read.restype = None
    return loaded


@cache
def supported_isas() -> tuple[str, ...]:
    """Return the vector ISAs this CPU can run, the widest one first."""
    baseline = library("generic")
    return tuple(
        isa
        for isa in ISA_FLAGS
        if isa not in BFLOAT16_UNITS and baseline.roofline_supports(isa.encode()) != 0
    )


@cache
def without_bfloat16(isa: str) -> str | None:
    """Return None if bfloat16 products of an ISA can be measured, else the reason."""
    if library("generic").roofline_supports(isa.encode()) == 0:
        return f"no {BFLOAT16_UNITS[isa]} here"
    try:
        library(isa)
    except RooflineError as error:
        return str(error)
    return None


def roof_of(products: str, isa: str | None) -> Roof:
    """Return the rate that limits a computation.

    Parameters
    ----------
    products : str
        What is multiplied, as `cpuattn.explain` says it: "float32", "bfloat16 x3" ...;
        float16 is multiplied as float32.
    isa : str or None
        The instructions it is limited to, None for the best of the machine.

    Returns
    -------
    Roof
    """
    element, _, terms = products.partition(" x")
    if element == "bfloat16":
        candidates = list(BFLOAT16_UNITS) if isa is None else [isa]
        for unit in candidates:
            if unit in BFLOAT16_UNITS and without_bfloat16(unit) is None:
                return Roof("bfloat16", unit, int(terms or 1))
    vectors = supported_isas()
    name = vectors[0] if isa is None else vector_isa(isa)
    return Roof(
        "float64" if element == "float64" else "float32",
        name if name in vectors else vectors[0],
    )


def vector_isa(isa: str) -> str:
    """Return the vectors that an ISA of cpuattn computes float32 with."""
    known = {"scalar": "generic", "amx_bf16": "avx512"}
    return known.get(isa) or isa.partition("_")[0]


def product_rates(roof: Roof, threads: int, seconds: float) -> list[float]:
    """Measure the rate of products, registers only.

    Parameters
    ----------
    roof : Roof
    threads : int
    seconds : float
        How long to measure.

    Returns
    -------
    list of float
        FLOP/s of each pass of about half a millisecond; every product counts, whatever
        ``roof.terms``.
    """
    measured = library(roof.isa)
    element = roof.element.encode()
    flops_per_step = measured.roofline_flops_per_step(element) * threads

    def run(passes: int, steps: int) -> npt.NDArray[np.float64]:
        times = np.empty(passes, dtype=np.float64)
        measured.roofline_products(
            element,
            ctypes.c_int(threads),
            ctypes.c_int(passes),
            ctypes.c_int64(steps),
            times.ctypes.data_as(ctypes.c_void_p),
        )
        return times

    probe = 10000
    once = max(float(run(5, probe).min()), 1e-9)
    steps = int(probe * PRODUCTS_PASS_SECONDS / once) + 1
    passes = max(3, round(seconds / PRODUCTS_PASS_SECONDS))
    return [float(rate) for rate in steps * flops_per_step / run(passes, steps)]


def read_rates(
    arrays: list[FloatArray], variant: ReadVariant, threads: int, seconds: float
) -> list[float]:
    """Measure the rate of reading the given arrays once, warm from the pass before.

    Parameters
    ----------
    arrays : list of ndarray, C-contiguous
        Usually key and value of the case, so that the footprint and the memory pages
        are those of the calls it is compared with.
    variant : ReadVariant
    threads : int
    seconds : float
        How long to measure.

    Returns
    -------
    list of float
        Bytes/s of each pass over all arrays.
    """
    measured = library(supported_isas()[0])
    ranges = (ctypes.c_void_p * len(arrays))(*[array.ctypes.data for array in arrays])
    sizes = (ctypes.c_int64 * len(arrays))(*[array.nbytes for array in arrays])

    def run(passes: int) -> npt.NDArray[np.float64]:
        times = np.empty(passes, dtype=np.float64)
        measured.roofline_read(
            ctypes.c_int(threads),
            ctypes.c_int(passes),
            ctypes.c_int(variant.streams),
            ctypes.c_int64(variant.prefetch),
            ranges,
            sizes,
            ctypes.c_int(len(arrays)),
            times.ctypes.data_as(ctypes.c_void_p),
        )
        return times

    once = max(float(run(2)[1]), 1e-9)
    passes = min(max(3, round(seconds / once)), 100000)
    total = sum(array.nbytes for array in arrays)
    return [float(rate) for rate in total / run(passes)]


def measurable_roofs() -> list[Roof]:
    """Return every rate of products that this machine and its compiler have."""
    roofs = [
        Roof(element, isa)
        for element in ("float32", "float64")
        for isa in supported_isas()
    ]
    return roofs + [
        Roof("bfloat16", isa) for isa in BFLOAT16_UNITS if without_bfloat16(isa) is None
    ]


def main() -> None:
    """Print the limits of this machine."""
    parser = argparse.ArgumentParser(description="Measure this machine's limits.")
    parser.add_argument("--threads", default="1", help="comma-separated, e.g. 1,2")
    parser.add_argument(
        "--megabytes", default="0.1,1,8,32,256", help="read footprints, MB"
    )
    options = parser.parse_args()
    try:
        roofs = measurable_roofs()
    except RooflineError as error:
        sys.exit(str(error))
    for isa in BFLOAT16_UNITS:
        reason = without_bfloat16(isa)
        if reason is not None:
            print(f"bfloat16 {isa}: {reason}")
    for threads in (int(text) for text in options.threads.split(",")):
        for roof in roofs:
            rates = np.array(product_rates(roof, threads, 0.2)) / 1e9
            print(
                f"{threads} threads  {roof.element:8} {roof.isa:11}  "
                f"median {np.median(rates):8.1f}  best {rates.max():8.1f} GFLOP/s"
            )
        for megabytes in (float(text) for text in options.megabytes.split(",")):
            array = aligned_empty((int(megabytes * 1e6) // 4,))
            array.fill(1.0)
            for variant in READ_VARIANTS:
                rates = np.array(read_rates([array], variant, threads, 0.1)) / 1e9
                print(
                    f"{threads} threads  read {megabytes:g} MB ({variant})  "
                    f"median {np.median(rates):8.1f}  best {rates.max():8.1f} GB/s"
                )


if __name__ == "__main__":
    main()
