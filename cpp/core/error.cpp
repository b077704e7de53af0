// SPDX-License-Identifier: MIT
#include "core/error.h"

#include <cstdarg>
#include <cstdio>

namespace cpuattn {

bool fail(Error& error, Error::Kind kind, const char* format, ...) {
  error.kind = kind;
  va_list args;
  va_start(args, format);
  std::vsnprintf(error.text, sizeof error.text, format, args);
  va_end(args);
  return false;
}

}  // namespace cpuattn
