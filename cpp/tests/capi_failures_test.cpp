// SPDX-License-Identifier: MIT
// What goes wrong in the middle of a call of the C interface: it is cancelled, memory runs out, an
// executor does not do its job, the process forks. Each time the next call must be right.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpuattn/cpuattn.h"
#include "support.h"

#if defined(__unix__) && !defined(__SANITIZE_THREAD__)
#include <sys/wait.h>
#include <unistd.h>
#define CPUATTN_TEST_FORK 1
#endif

namespace {

// Allocations of this process until one fails; negative: none does.
std::atomic<int64_t> allocations_left{-1};

void* allocate(size_t size, size_t alignment) {
  if (allocations_left.load() >= 0 && allocations_left.fetch_sub(1) == 0) return nullptr;
  size = (std::max<size_t>(size, 1) + alignment - 1) / alignment * alignment;
  return std::aligned_alloc(alignment, size);
}

}  // namespace

void* operator new(size_t size) {
  void* const memory = allocate(size, alignof(std::max_align_t));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new(size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return allocate(size, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }

namespace cpuattn {
namespace {

struct Case {
  const char* name;
  int64_t heads, kv_heads, q_len, kv_len, head_dim;
  bool weights;  // wanted
  bool hidden;   // all keys, by a mask: the results are mean values
};
constexpr Case kCases[] = {
    {"prefill", 4, 2, 70, 300, 64, false, false},
    {"one item of many blocks", 1, 1, 64, 3000, 32, false, false},
    {"split keys", 8, 2, 1, 6000, 64, false, false},
    {"many items", 200, 200, 1, 20, 32, false, false},
    {"weights", 2, 1, 66, 300, 16, true, false},
    {"mean values", 2, 1, 5, 700, 24, true, true},
};

class Problem {
 public:
  cpuattn_problem call = cpuattn_problem_default();

  explicit Problem(const Case& c)
      : query_shape_{c.heads, c.q_len, c.head_dim},
        key_shape_{c.kv_heads, c.kv_len, c.head_dim},
        score_shape_{c.heads, c.q_len, c.kv_len} {
    call.query = array(query_, query_shape_);
    call.key = array(key_, key_shape_);
    call.value = array(value_, key_shape_);
    call.out = array(out_, query_shape_);
    if (c.weights) call.weights = array(weights_, score_shape_);
    if (c.hidden) {
      call.bias = array(bias_, score_shape_);  // each row has a mean of its own
      call.mask = {&no_, no_shape_, nullptr, 1, CPUATTN_BOOL};
      call.fully_masked = CPUATTN_MASKED_MEAN;
    }
    call.num_threads = 1;
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  cpuattn_status run(cpuattn_plan* plan = nullptr) {
    std::fill(out_.begin(), out_.end(), 77.0f);
    std::fill(weights_.begin(), weights_.end(), 77.0f);
    return plan != nullptr ? cpuattn_plan_run(plan, &call) : cpuattn_attention(&call);
  }
  void remember() { expected_ = results(); }
  bool is_right() const { return results() == expected_; }

 private:
  cpuattn_array array(std::vector<float>& numbers, const int64_t (&shape)[3]) {
    numbers.resize(static_cast<size_t>(shape[0] * shape[1] * shape[2]));
    for (float& x : numbers) x = random_.uniform(-1.0f, 1.0f);
    return {numbers.data(), shape, nullptr, 3, CPUATTN_FLOAT32};
  }
  std::vector<float> results() const {
    std::vector<float> all = out_;
    all.insert(all.end(), weights_.begin(), weights_.end());
    return all;
  }

  int64_t query_shape_[3], key_shape_[3], score_shape_[3], no_shape_[1] = {1};
  bool no_ = false;
  std::vector<float> query_, key_, value_, bias_, out_, weights_, expected_;
  Random random_{5};
};

bool last_error_begins(const char* text) {
  return std::strncmp(cpuattn_last_error(), text, std::strlen(text)) == 0;
}

// The problem's tasks on as many threads as it says, new ones each time.
void run_on_threads(void* threads, int64_t count, cpuattn_task task, void* context) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t i; (i = next.fetch_add(1)) < count;) task(context, i);
  };
  std::vector<std::thread> team;
  for (int i = 1; i < *static_cast<int*>(threads); ++i) team.emplace_back(work);
  work();
  for (std::thread& thread : team) thread.join();
}

// Says yes from the question number `limit` on.
struct Questions {
  std::atomic<int64_t> asked{0};
  int64_t limit = 0;

  static int32_t answer(void* self) {
    auto& questions = *static_cast<Questions*>(self);
    return questions.asked.fetch_add(1) >= questions.limit ? 1 : 0;
  }
};

void test_cancel(Report& report) {
  report.subject("cancelled at any question, the next call is right");
  const int64_t denser = test_sample() > 1 ? 1 : 8;
  for (const Case& c : kCases) {
    for (int threads = 1; threads <= 3; ++threads) {
      for (const bool executes : {false, true}) {
        Problem problem(c);
        problem.call.num_threads = threads;
        report.expect(problem.run() == CPUATTN_OK, "%s: %s", c.name, cpuattn_last_error());
        problem.remember();
        const cpuattn_executor executor{run_on_threads, &threads};
        if (executes) problem.call.executor = &executor;
        cpuattn_plan* plan = nullptr;
        report.expect(cpuattn_plan_create(&problem.call, &plan) == CPUATTN_OK, "%s", c.name);
        int64_t limit = 0;
        for (bool cancelled = true; cancelled; limit += 1 + limit / denser) {
          Questions questions;
          questions.limit = limit;
          problem.call.cancelled = Questions::answer;
          problem.call.cancelled_context = &questions;
          const cpuattn_status status = problem.run(limit % 2 == 0 ? plan : nullptr);
          cancelled = questions.asked.load() > limit;
          report.expect(status == (cancelled ? CPUATTN_ERROR_CANCELLED : CPUATTN_OK),
                        "%s, %d threads, limit %d: status %d", c.name, threads,
                        static_cast<int>(limit), status);
          report.expect(!cancelled || last_error_begins("cancelled: the results are incomplete"),
                        "text: %s", cpuattn_last_error());
          report.expect(cancelled || problem.is_right(), "%s: asked without effect", c.name);
          problem.call.cancelled = nullptr;
          report.expect(problem.run(plan) == CPUATTN_OK && problem.is_right(),
                        "%s, %d threads: after limit %d", c.name, threads, static_cast<int>(limit));
        }
        report.expect(limit > 1, "%s: never asked", c.name);
        cpuattn_plan_destroy(plan);
      }
    }
  }
}

void test_nested_call(Report& report) {
  report.subject("a call from a question leaves the call that asks alone");
  for (const Case& c : kCases) {
    for (int threads = 1; threads <= 2; ++threads) {
      Problem outer(c);
      Problem inner(kCases[c.q_len > 1 ? 0 : 2]);  // as large, by the same kernel
      outer.call.num_threads = inner.call.num_threads = threads;
      for (Problem* problem : {&outer, &inner}) {
        report.expect(problem->run() == CPUATTN_OK, "%s", cpuattn_last_error());
        problem->remember();
      }
      struct Nested {
        Problem& problem;
        const std::thread::id owner = std::this_thread::get_id();
        int asked = 0, right = 0;
      } nested{inner};
      outer.call.cancelled_context = &nested;
      outer.call.cancelled = [](void* context) -> int32_t {
        auto& self = *static_cast<Nested*>(context);
        if (std::this_thread::get_id() != self.owner || ++self.asked > 10) return 0;
        self.right += self.problem.run() == CPUATTN_OK && self.problem.is_right() ? 1 : 0;
        return 0;
      };
      report.expect(outer.run() == CPUATTN_OK && outer.is_right(), "%s", c.name);
      report.expect((nested.right > 0 || threads > 1) && nested.right == std::min(nested.asked, 10),
                    "%s: %d of %d inner calls", c.name, nested.right, nested.asked);
    }
  }
}

// Allocations fail in a thread of its own, whose scratch is not there yet; that of the pool's
// threads grows with head_dim.
void test_memory(Report& report) {
  report.subject("any allocation fails: an error or the right result, and the next call is right");
  int failures = 0;
  for (const int64_t kv_len : {100, 6000}) {
    for (int threads = 1; threads <= 3; ++threads) {
      bool failed = true;
      for (int64_t n = 0; failed; ++n) {
        const Case c{"", 8, 2, kv_len == 100 ? 80 : 1, kv_len, 16 * (threads + n), false, false};
        Problem problem(c);
        report.expect(problem.run() == CPUATTN_OK, "%s", cpuattn_last_error());
        problem.remember();
        problem.call.num_threads = threads;
        cpuattn_status status = CPUATTN_OK;
        bool right = false, right_again = false, told = false;
        std::thread([&] {
          allocations_left.store(n);
          status = problem.run();
          failed = allocations_left.exchange(-1) < 0;
          right = problem.is_right();
          told = last_error_begins("out of memory for scratch: ");
          right_again = problem.run() == CPUATTN_OK && problem.is_right();
        }).join();
        failures += status == CPUATTN_ERROR_MEMORY ? 1 : 0;
        report.expect(status == CPUATTN_OK ? right : status == CPUATTN_ERROR_MEMORY && told,
                      "allocation %d, %d threads: status %d", static_cast<int>(n), threads, status);
        report.expect(right_again, "after allocation %d, %d threads", static_cast<int>(n), threads);
      }
    }
  }
  report.expect(failures >= 2, "only %d calls ran out of memory", failures);
}

void test_executor(Report& report) {
  report.subject("an executor that leaves tasks out, or throws, does no harm");
  Problem problem(kCases[0]);
  problem.call.num_threads = 2;
  report.expect(problem.run() == CPUATTN_OK, "%s", cpuattn_last_error());
  problem.remember();
  const cpuattn_executor lazy{[](void*, int64_t count, cpuattn_task task, void* context) {
                                for (int64_t i = 1; i < count; ++i) task(context, i);
                              },
                              nullptr};
  const cpuattn_executor throwing{[](void*, int64_t, cpuattn_task task, void* context) {
                                    task(context, 0);
                                    throw std::runtime_error("no threads");
                                  },
                                  nullptr};
  // Made with an executor, a plan has room for its threads also where the library has none.
  problem.call.executor = &lazy;
  cpuattn_plan* plan = nullptr;
  report.expect(cpuattn_plan_create(&problem.call, &plan) == CPUATTN_OK, "plan");
  for (cpuattn_plan* with : {plan, static_cast<cpuattn_plan*>(nullptr)}) {
    problem.call.executor = &lazy;
    report.expect(problem.run(with) == CPUATTN_ERROR_VALUE, "a task left out");
    report.expect(last_error_begins("executor: must run every task once before it returns; got "),
                  "%s", cpuattn_last_error());
    problem.call.executor = &throwing;
    bool caught = false;
    try {
      problem.run(with);
    } catch (const std::runtime_error& error) {
      caught = error.what() == std::string("no threads");
    }
    report.expect(caught, "the exception passes");
    problem.call.executor = nullptr;
    report.expect(problem.run(with) == CPUATTN_OK && problem.is_right(), "the next call");
  }
  cpuattn_plan_destroy(plan);
}

void test_plan_in_use(Report& report) {
  report.subject("a plan runs once at a time, and errors belong to their thread");
  Problem problem(kCases[0]);
  problem.call.num_threads = 2;
  struct Rival {
    cpuattn_plan* plan = nullptr;
    Problem problem{kCases[0]};
    cpuattn_status status = CPUATTN_OK;
    bool told = false;
  } rival;
  rival.problem.call.num_threads = 2;
  const cpuattn_executor executor{[](void* pool, int64_t count, cpuattn_task task, void* context) {
                                    auto& other = *static_cast<Rival*>(pool);
                                    std::thread([&] {
                                      other.status = other.problem.run(other.plan);
                                      other.told = last_error_begins("plan: must run once at a ");
                                    }).join();
                                    for (int64_t i = 0; i < count; ++i) task(context, i);
                                  },
                                  &rival};
  report.expect(problem.run() == CPUATTN_OK, "%s", cpuattn_last_error());
  problem.remember();
  problem.call.executor = &executor;
  report.expect(cpuattn_plan_create(&problem.call, &rival.plan) == CPUATTN_OK, "plan");
  report.expect(cpuattn_attention(nullptr) == CPUATTN_ERROR_VALUE, "an error of this thread");
  const std::string before = cpuattn_last_error();
  report.expect(problem.run(rival.plan) == CPUATTN_OK && problem.is_right(), "the first run");
  report.expect(rival.status == CPUATTN_ERROR_VALUE && rival.told, "the second run");
  report.expect(before == cpuattn_last_error(), "an error of another thread: %s",
                cpuattn_last_error());
  std::string elsewhere = "unset";
  std::thread([&] { elsewhere = cpuattn_last_error(); }).join();
  report.expect(elsewhere.empty(), "a new thread: %s", elsewhere.c_str());
  report.expect(rival.problem.run(rival.plan) == CPUATTN_OK, "later");
  cpuattn_plan_destroy(rival.plan);
}

#ifdef CPUATTN_TEST_FORK

int exit_code_of(pid_t child) {
  int status = -1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void test_fork(Report& report) {
  report.subject("fork in an executor, and in a question: both processes go on");
  struct Forks {
    pid_t child = -1;
    const std::thread::id owner = std::this_thread::get_id();
    std::atomic<bool> once{false};
  };
  for (const Case& c : kCases) {
    Problem problem(c);
    problem.call.num_threads = 2;
    report.expect(problem.run() == CPUATTN_OK, "%s", cpuattn_last_error());
    problem.remember();
    std::fflush(stdout);

    Forks in_executor;
    const cpuattn_executor executor{
        [](void* pool, int64_t count, cpuattn_task task, void* context) {
          static_cast<Forks*>(pool)->child = fork();
          for (int64_t i = 0; i < count; ++i) task(context, i);
        },
        &in_executor};
    problem.call.executor = &executor;
    const bool executed = problem.run() == CPUATTN_OK && problem.is_right();
    problem.call.executor = nullptr;
    if (in_executor.child == 0) {
      _exit(executed && problem.run() == CPUATTN_OK && problem.is_right() ? 0 : 1);
    }
    report.expect(executed, "%s: executor", c.name);
    report.expect(in_executor.child < 0 || exit_code_of(in_executor.child) == 0,
                  "%s: child of an executor", c.name);

#ifdef CPUATTN_TEST_OPENMP
    problem.call.num_threads = 1;  // a region of OpenMP that forks does not end in the child
#endif
    Forks in_question;
    problem.call.cancelled_context = &in_question;
    problem.call.cancelled = [](void* context) -> int32_t {
      auto& forks = *static_cast<Forks*>(context);
      if (std::this_thread::get_id() == forks.owner && !forks.once.exchange(true)) {
        forks.child = fork();
      }
      return 0;
    };
    const cpuattn_status status = problem.run();
    const bool right = status == CPUATTN_OK && problem.is_right();
    problem.call.cancelled = nullptr;
    if (in_question.child == 0) {
      const bool lost = status == CPUATTN_ERROR_RUNTIME && last_error_begins("fork: ");
      _exit((right || lost) && problem.run() == CPUATTN_OK && problem.is_right() ? 0 : 1);
    }
    report.expect(right, "%s: question", c.name);
    // Without a child, the other thread took all tasks.
    const int code = in_question.child > 0 ? exit_code_of(in_question.child) : 0;
    report.expect(code == 0, "%s: child of a question: %d", c.name, code);
  }
}

#endif

int run() {
  Report report;
  test_memory(report);
  test_cancel(report);
  test_nested_call(report);
  test_executor(report);
  test_plan_in_use(report);
#ifdef CPUATTN_TEST_FORK
  test_fork(report);
#endif
  return report.finish();
}

}  // namespace
}  // namespace cpuattn

int main() { return cpuattn::run(); }
