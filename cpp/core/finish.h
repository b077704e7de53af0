// SPDX-License-Identifier: MIT
// What is left for an item's rows after the kernel: lse, and rows that saw no key.
#pragma once

#include "core/combine.h"
#include "core/problem.h"
#include "kernels/work_item.h"

namespace cpuattn {

// Sets the item's rows of the returned weights to 0: kernels write only what a row sees.
void clear_weights(const AttentionProblem& problem, const WorkItem& item);

// `mean` is scratch for one value row.
template <class Real>
void finish_rows(const AttentionProblem& problem, const WorkItem& item,
                 const PartialState<Real>& state, Real* mean);

}  // namespace cpuattn
