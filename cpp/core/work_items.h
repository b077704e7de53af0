// SPDX-License-Identifier: MIT
// From a problem and an item's index to the plain numbers that a kernel reads.
#pragma once

#include "core/problem.h"
#include "core/schedule.h"
#include "kernels/work_item.h"

namespace cpuattn {

// Item `index` in claim order: kv heads in order, and in each the row blocks from the last to the
// first, so that under a causal mask the longest come first while keys and values stay in cache.
// kv_begin to scratch are left for the caller.
WorkItem make_work_item(const AttentionProblem& problem, const Plan& plan, int64_t index);

// Address of a query row (token * group + head) in a plane of the item's group.
char* plane_row(const RowPlane& plane, const WorkItem& item, int64_t row);

}  // namespace cpuattn
