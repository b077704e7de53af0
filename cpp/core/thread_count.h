// SPDX-License-Identifier: MIT
// How many threads a call may use, and who said so.
#pragma once

namespace cpuattn {

// `requested` if positive, else set_default_threads, else CPUATTN_NUM_THREADS, else
// OMP_NUM_THREADS, else the CPUs that affinity and the cgroup quota leave.
int thread_count(int requested);
const char* thread_count_source(int requested);
void set_default_threads(int threads);  // 0 returns to the environment

}  // namespace cpuattn
