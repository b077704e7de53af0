/* SPDX-License-Identifier: MIT
 * The one source of the version: CMake and the Python package read it from here. */
#ifndef CPUATTN_VERSION_H
#define CPUATTN_VERSION_H

#define CPUATTN_VERSION "0.1.0"

#endif /* CPUATTN_VERSION_H */
