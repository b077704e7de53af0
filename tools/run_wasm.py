#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Run a WebAssembly program for WASI (pip install wasmtime).

Usage: tools/run_wasm.py PROGRAM [ARGUMENT...]; it sees the environment variables.
"""

import sys

from wasmtime import Engine, ExitTrap, Linker, Module, Store, WasiConfig


def main() -> None:
    """Run it and exit as it does."""
    engine = Engine()
    store = Store(engine)
    wasi = WasiConfig()
    wasi.argv = sys.argv[1:]
    wasi.inherit_env()
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    store.set_wasi(wasi)
    linker = Linker(engine)
    linker.define_wasi()
    instance = linker.instantiate(store, Module.from_file(engine, sys.argv[1]))
    start = instance.exports(store)["_start"]
    try:
        start(store)
    except ExitTrap as end:
        sys.exit(end.code)


if __name__ == "__main__":
    main()
