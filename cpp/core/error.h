// SPDX-License-Identifier: MIT
// One error with its kind and one line of text; the same text reaches Python and C.
#pragma once

namespace cpuattn {

struct Error {
  enum class Kind { kNone, kType, kValue, kRuntime, kMemory, kNotImplemented, kCancelled };

  Kind kind = Kind::kNone;
  char text[512] = "";

  explicit operator bool() const { return kind != Kind::kNone; }
};

// Fills `error` printf-style and returns false, so that checks can `return fail(...)`.
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
bool fail(Error& error, Error::Kind kind, const char* format, ...);

}  // namespace cpuattn
