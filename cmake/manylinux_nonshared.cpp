// SPDX-License-Identifier: MIT
// What libstdc++ 12 has inline code call and the libstdc++ of manylinux_2_28 does not export.
//
// manylinux-toolchain.cmake links it, with eh_ptr.o of libstdc++.a (which needs __terminate).
#include <cstdlib>
#include <new>

namespace std {
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std

namespace __cxxabiv1 {
[[noreturn]] void __terminate(void (*handler)()) noexcept {
  handler();
  std::abort();
}
}  // namespace __cxxabiv1
