// SPDX-License-Identifier: MIT
// Prefill of a causal prompt in C++, on threads of the app's own: the library starts none.
//
// Usage: embed_cpp [tokens]. Checks the result against a plain loop and prints the largest error.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "cpuattn/cpuattn.h"

namespace {

constexpr int64_t kHeads = 4, kHeadDim = 64;
constexpr int kThreads = 2;

// The app's way to run tasks; a real one would hand them to its pool.
void run_on_threads(void*, int64_t count, cpuattn_task task, void* context) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t i; (i = next++) < count;) task(context, i);
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < kThreads; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
}

struct Tensor {
  std::vector<float> data;
  std::vector<int64_t> shape;

  Tensor(int64_t tokens) : data(kHeads * tokens * kHeadDim), shape{kHeads, tokens, kHeadDim} {}
  const float* row(int64_t head, int64_t token) const {
    return data.data() + (head * shape[1] + token) * kHeadDim;
  }
  cpuattn_array view() { return {data.data(), shape.data(), nullptr, 3, CPUATTN_FLOAT32}; }
};

double largest_error(const Tensor& query, const Tensor& key, const Tensor& value,
                     const Tensor& out) {
  const int64_t tokens = query.shape[1];
  double largest = 0;
  std::vector<double> weight(static_cast<size_t>(tokens));
  for (int64_t head = 0; head < kHeads; ++head) {
    for (int64_t i = 0; i < tokens; ++i) {
      double sum = 0;
      for (int64_t j = 0; j <= i; ++j) {
        double score = 0;
        for (int64_t d = 0; d < kHeadDim; ++d) {
          score += double{query.row(head, i)[d]} * double{key.row(head, j)[d]};
        }
        weight[static_cast<size_t>(j)] = std::exp(score / std::sqrt(double{kHeadDim}));
        sum += weight[static_cast<size_t>(j)];
      }
      for (int64_t d = 0; d < kHeadDim; ++d) {
        double expected = 0;
        for (int64_t j = 0; j <= i; ++j) {
          expected += weight[static_cast<size_t>(j)] / sum * double{value.row(head, j)[d]};
        }
        largest = std::max(largest, std::abs(expected - double{out.row(head, i)[d]}));
      }
    }
  }
  return largest;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t tokens = argc > 1 ? std::max(1, std::atoi(argv[1])) : 256;
  Tensor query(tokens), key(tokens), value(tokens), out(tokens);
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  for (Tensor* tensor : {&query, &key, &value}) {
    for (float& x : tensor->data) x = normal(random);
  }

  const cpuattn_executor threads{run_on_threads, nullptr};
  cpuattn_problem problem = cpuattn_problem_default();
  problem.query = query.view();
  problem.key = key.view();
  problem.value = value.view();
  problem.out = out.view();
  problem.causal = CPUATTN_CAUSAL_BOTTOM_RIGHT;
  problem.num_threads = kThreads;
  problem.executor = &threads;
  if (cpuattn_attention(&problem) != CPUATTN_OK) {
    std::fprintf(stderr, "%s\n", cpuattn_last_error());
    return 1;
  }
  const double error = largest_error(query, key, value, out);
  std::printf("%lld tokens on %s, largest error %.1e\n", static_cast<long long>(tokens),
              cpuattn_isa(), error);
  return error < 1e-5 ? 0 : 1;
}
