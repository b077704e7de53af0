// SPDX-License-Identifier: MIT
// The whole operator: plan, claim items, run the kernel, merge, finish.
#pragma once

#include "core/error.h"
#include "core/problem.h"
#include "core/schedule.h"

namespace cpuattn {

// Computes `problem` as `plan` says. Fails only when scratch memory cannot be had.
bool run_attention(const AttentionProblem& problem, const Plan& plan, Error& error);

}  // namespace cpuattn
