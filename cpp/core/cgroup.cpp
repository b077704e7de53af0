// SPDX-License-Identifier: MIT
// Reads /proc/self/cgroup for the group, then the quota files from there up to the root. A
// container usually sees its own group as the root; where it sees a path of the host's, only the
// root exists.
#include "core/cgroup.h"

#include <algorithm>
#include <cstdio>
#include <string>

namespace cpuattn {
namespace {

// The first `count` numbers of a file; false if it has not as many ("max 100000" has none).
bool read_numbers(const std::string& path, int count, double* numbers) {
  std::FILE* file = std::fopen(path.c_str(), "r");
  if (file == nullptr) return false;
  bool all = true;
  for (int i = 0; i < count && all; ++i) all = std::fscanf(file, "%lf", &numbers[i]) == 1;
  std::fclose(file);
  return all;
}

// CPUs of one group; 0 without a quota.
double quota_of(const std::string& group, bool version2) {
  double quota[2] = {0, 0};  // microseconds of CPU time, in a period of so many
  const bool found = version2 ? read_numbers(group + "/cpu.max", 2, quota)
                              : read_numbers(group + "/cpu.cfs_quota_us", 1, quota) &&
                                    read_numbers(group + "/cpu.cfs_period_us", 1, quota + 1);
  return found && quota[0] > 0 && quota[1] > 0 ? quota[0] / quota[1] : 0;
}

double tightest_quota(const std::string& root, std::string path, bool version2) {
  double tightest = 0;
  for (;;) {
    const double quota = quota_of(root + path, version2);
    if (quota > 0) tightest = tightest > 0 ? std::min(tightest, quota) : quota;
    const std::size_t slash = path.find_last_of('/');
    if (slash == std::string::npos) return tightest;
    path.resize(slash);
  }
}

// The path after "0::" (version 2), or after a list of controllers that has cpu (version 1).
bool path_of(const std::string& line, bool& version2, std::string& path) {
  const std::size_t first = line.find(':');
  const std::size_t second = line.find(':', first + 1);
  if (first == std::string::npos || second == std::string::npos) return false;
  std::string controllers(",");
  controllers.append(line, first + 1, second - first - 1).push_back(',');
  version2 = controllers == ",,";
  if (!version2 && controllers.find(",cpu,") == std::string::npos) return false;
  path = line.substr(second + 1);
  return true;
}

}  // namespace

double cgroup_cpus(const char* process_root, const char* cgroup_root) {
  std::FILE* file = std::fopen((std::string(process_root) + "/cgroup").c_str(), "r");
  if (file == nullptr) return 0;
  double tightest = 0;
  char line[4096];
  while (std::fgets(line, sizeof line, file) != nullptr) {
    bool version2;
    std::string path;
    std::string text(line);
    if (!text.empty() && text.back() == '\n') text.pop_back();
    if (!path_of(text, version2, path)) continue;
    const std::string root = std::string(cgroup_root) + (version2 ? "" : "/cpu");
    const double quota = tightest_quota(root, path == "/" ? "" : path, version2);
    if (quota > 0) tightest = tightest > 0 ? std::min(tightest, quota) : quota;
  }
  std::fclose(file);
  return tightest;
}

double cgroup_cpus() { return cgroup_cpus("/proc/self", "/sys/fs/cgroup"); }

}  // namespace cpuattn
