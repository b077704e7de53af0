// SPDX-License-Identifier: MIT
// The one source of the version: CMake and the Python package read it from here.
#pragma once

#define CPUATTN_VERSION "0.1.0"
