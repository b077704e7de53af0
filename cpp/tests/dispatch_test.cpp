// SPDX-License-Identifier: MIT
// Which ISA runs: the best usable one, or what CPUATTN_ISA or force_isa names.
#include "core/dispatch.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "check.h"
#include "core/cpu_features.h"

namespace cpuattn {
namespace {

void set_variable(const char* value) {
#if defined(_WIN32)
  _putenv_s("CPUATTN_ISA", value != nullptr ? value : "");
#else
  if (value != nullptr) {
    setenv("CPUATTN_ISA", value, 1);
  } else {
    unsetenv("CPUATTN_ISA");
  }
#endif
}

// The ISA that a fresh process with this variable would use.
const Isa* isa_with(const char* value, Error& error) {
  set_variable(value);
  Error none;
  force_isa(nullptr, none);
  return active_isa(error);
}

const Isa* best() {
  for (const Isa& isa : all_isas()) {
    if (usable(isa) && (isa.preferred & ~cpu_features()) == 0) return &isa;
  }
  return nullptr;
}

void expected_text(const char* name, char (&text)[256]) {
  std::snprintf(text, sizeof text, "CPUATTN_ISA: must be one of ");
  const char* separator = "";
  for (const Isa& isa : all_isas()) {
    if (!usable(isa)) continue;
    const size_t used = std::strlen(text);
    std::snprintf(text + used, sizeof text - used, "%s%s", separator, isa.name);
    separator = ", ";
  }
  const size_t used = std::strlen(text);
  std::snprintf(text + used, sizeof text - used, " on this machine; got %s", name);
}

void expect_refused(Report& report, const char* name) {
  char text[256];
  expected_text(name, text);
  Error error;
  report.expect(isa_with(name, error) == nullptr, "CPUATTN_ISA=%s is accepted", name);
  report.expect(error.kind == Error::Kind::kRuntime && std::strcmp(error.text, text) == 0,
                "CPUATTN_ISA=%s: got \"%s\", expected \"%s\"", name, error.text, text);
  Error forced;
  report.expect(!force_isa(name, forced) && std::strcmp(forced.text, text) == 0,
                "force_isa(%s): got \"%s\"", name, forced.text);
}

void test_default(Report& report) {
  report.subject(
      "without CPUATTN_ISA the first usable ISA runs whose preferred features are there");
  report.expect(best() != nullptr, "no ISA is usable");
  for (const char* value : {static_cast<const char*>(nullptr), ""}) {
    Error error;
    report.expect(isa_with(value, error) == best() && !error, "default");
  }
  report.subject("the portable ISA needs no CPU feature and comes last");
  const Isa& last = all_isas().end()[-1];
  report.expect(std::strcmp(last.name, "scalar") == 0 && last.required == 0 && usable(last),
                "last is %s", last.name);
}

void test_named(Report& report) {
  report.subject("CPUATTN_ISA and force_isa choose each usable ISA");
  for (const Isa& isa : all_isas()) {
    if (!usable(isa)) {
      std::printf("%s is not usable here\n", isa.name);
      continue;
    }
    Error error;
    report.expect(isa_with(isa.name, error) == &isa && !error, "CPUATTN_ISA=%s", isa.name);
    set_variable("scalar");
    report.expect(force_isa(isa.name, error) && active_isa(error) == &isa && !error,
                  "force_isa(%s) beats CPUATTN_ISA", isa.name);
  }
}

void test_tables(Report& report) {
  report.subject("a compiled ISA has tables of float32 and float64; one is named after it");
  for (const Isa& isa : all_isas()) {
    report.expect((isa.float32 != nullptr) == (isa.float64 != nullptr), "%s", isa.name);
    if (isa.float32 == nullptr) continue;
    const KernelTable& own = isa.bfloat16 != nullptr ? *isa.bfloat16 : *isa.float32;
    report.expect(std::strcmp(own.isa, isa.name) == 0, "%s names itself %s", isa.name, own.isa);
    char name[64];
    std::snprintf(name, sizeof name, "%s_f64", isa.float32->isa);
    report.expect(std::strcmp(isa.float64->isa, name) == 0, "%s names itself %s", name,
                  isa.float64->isa);
  }
}

void test_refused(Report& report) {
  report.subject("an unusable or unknown name is refused, with the usable ones listed");
  for (const Isa& isa : all_isas()) {
    if (!usable(isa)) expect_refused(report, isa.name);
  }
  for (const char* name : {"sse9", "AVX2", "avx", "scalar ", "avx512,avx2", "default"}) {
    expect_refused(report, name);
  }
  report.subject("a refused name changes nothing");
  Error error;
  const Isa* before = isa_with("scalar", error);
  report.expect(!force_isa("sse9", error) && active_isa(error) == before, "force_isa");
  Error later;
  report.expect(isa_with("sse9", later) == nullptr && isa_with("scalar", error) == before,
                "a corrected CPUATTN_ISA works");
  report.subject("a long name is cut in the text");
  char name[400];
  std::memset(name, 'x', sizeof name - 1);
  name[sizeof name - 1] = '\0';
  Error cut;
  report.expect(!force_isa(name, cut) && std::strlen(cut.text) < 256, "%s", cut.text);
}

}  // namespace
}  // namespace cpuattn

int main() {
  cpuattn::Report report;
  cpuattn::test_default(report);
  cpuattn::test_named(report);
  cpuattn::test_tables(report);
  cpuattn::test_refused(report);
  return report.finish();
}
