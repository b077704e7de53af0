// SPDX-License-Identifier: MIT
// The CPU bandwidth that Linux control groups leave to this process.
#pragma once

namespace cpuattn {

// CPUs' worth of time that the tightest quota allows, of the process's group and of those around
// it; 0 without a quota, and where there are no control groups.
double cgroup_cpus();

// The same by files below other roots than /proc/self and /sys/fs/cgroup, for tests.
double cgroup_cpus(const char* process_root, const char* cgroup_root);

}  // namespace cpuattn
