// SPDX-License-Identifier: MIT
// CPU tensors of other libraries through DLPack: read in place, and answered in kind.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <forward_list>
#include <string>
#include <vector>

#include "core/problem.h"

namespace cpuattn {

// Whether `object` offers the DLPack protocol (torch, JAX, any other array library).
bool speaks_dlpack(PyObject* object);

// A tensor of another library, held from view() to the destructor.
class Tensor {
 public:
  Tensor() = default;
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor();

  // Describes a tensor as view_ndarray() does an ndarray; to be called once.
  bool view(PyObject* object, const char* name, std::forward_list<std::string>& names,
            Array& array);
  // Never gives the tensor back: the interpreter is gone.
  void abandon() { managed_ = nullptr; }

 private:
  void* managed_ = nullptr;  // the producer's struct, which release_ gives back
  void (*release_)(void*) = nullptr;
  std::vector<int64_t> strides_;
};

// As new_ndarray(), a new object of `bytes` bytes that speaks DLPack, aligned for every library to
// take it over without a copy.
PyObject* new_tensor(Array& array, int64_t bytes);

// Hands what new_tensor() made to the library that the tensor `like` comes from: a new reference,
// or nullptr with a Python error set.
PyObject* in_kind(PyObject* made, PyObject* like);

}  // namespace cpuattn
