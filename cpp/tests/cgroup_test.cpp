// SPDX-License-Identifier: MIT
// Quotas of control groups, read from files as Linux and containers show them.
#include "core/cgroup.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <string>
#include <utility>

#include "check.h"

namespace cpuattn {
namespace {

using File = std::pair<const char*, const char*>;  // path, content

struct Case {
  const char* name;
  std::initializer_list<File> files;  // "proc/cgroup" and those below "sys"
  double cpus;
};

double cpus_of(const Case& c, const std::filesystem::path& directory) {
  std::filesystem::remove_all(directory);
  std::filesystem::create_directories(directory);
  for (const auto& [path, content] : c.files) {
    std::filesystem::create_directories((directory / path).parent_path());
    std::ofstream(directory / path) << content;
  }
  return cgroup_cpus((directory / "proc").string().c_str(), (directory / "sys").string().c_str());
}

const Case kCases[] = {
    {"no files", {}, 0},
    {"container: its group is the root",
     {{"proc/cgroup", "0::/\n"}, {"sys/cpu.max", "150000 100000\n"}},
     1.5},
    {"no quota", {{"proc/cgroup", "0::/\n"}, {"sys/cpu.max", "max 100000\n"}}, 0},
    {"service: its own group",
     {{"proc/cgroup", "0::/system.slice/app.service\n"},
      {"sys/system.slice/app.service/cpu.max", "50000 100000\n"},
      {"sys/system.slice/cpu.max", "max 100000\n"}},
     0.5},
    {"a group around it is tighter",
     {{"proc/cgroup", "0::/a/b\n"},
      {"sys/a/b/cpu.max", "800000 100000\n"},
      {"sys/a/cpu.max", "300000 100000\n"}},
     3},
    {"container that sees the path of the host",
     {{"proc/cgroup", "0::/docker/123\n"}, {"sys/cpu.max", "200000 100000\n"}},
     2},
    {"version 1 among other controllers",
     {{"proc/cgroup", "5:memory:/x\n4:cpu,cpuacct:/x\n0::/\n"},
      {"sys/cpu/x/cpu.cfs_quota_us", "250000\n"},
      {"sys/cpu/x/cpu.cfs_period_us", "100000\n"}},
     2.5},
    {"version 1 without a quota",
     {{"proc/cgroup", "4:cpuacct,cpu:/\n"},
      {"sys/cpu/cpu.cfs_quota_us", "-1\n"},
      {"sys/cpu/cpu.cfs_period_us", "100000\n"}},
     0},
    {"version 1, cpuset is not cpu",
     {{"proc/cgroup", "4:cpuset:/\n"},
      {"sys/cpu/cpu.cfs_quota_us", "100000\n"},
      {"sys/cpu/cpu.cfs_period_us", "100000\n"}},
     0},
    {"damaged files", {{"proc/cgroup", "nonsense\n0:\n\n0::/\n"}, {"sys/cpu.max", "100000\n"}}, 0},
    {"a period of 0", {{"proc/cgroup", "0::/\n"}, {"sys/cpu.max", "100000 0\n"}}, 0},
};

}  // namespace
}  // namespace cpuattn

int main() {
  using namespace cpuattn;
  Report report;
  const auto directory = std::filesystem::current_path() / "cgroup_test_files";
  for (const Case& c : kCases) {
    report.subject(c.name);
    const double cpus = cpus_of(c, directory);
    report.expect(cpus == c.cpus, "%g CPUs, expected %g", cpus, c.cpus);
  }
  report.subject("this system");
  const double cpus = cgroup_cpus();
  report.expect(cpus >= 0 && std::isfinite(cpus), "%g CPUs", cpus);
  std::filesystem::remove_all(directory);
  return report.finish();
}
