"""The commands of ``python -m cpuattn``, a module each."""
