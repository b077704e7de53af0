// SPDX-License-Identifier: MIT
// NumPy arrays as core Arrays: field loads through NumPy's C API, no casting, no copies.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <forward_list>
#include <string>

#include "core/problem.h"

namespace cpuattn {

// Loads NumPy's C API; false with a Python error set on failure.
bool import_numpy();

bool is_ndarray(PyObject* object);

// Whether `object` offers the DLPack protocol (torch, JAX, any other array library).
bool speaks_dlpack(PyObject* object);

// Describes an ndarray. `names` keeps the name of an unusual dtype alive for error texts. False
// with a Python error set when the object is not an array that can be read as one.
bool view_ndarray(PyObject* object, const char* name, std::forward_list<std::string>& names,
                  Array& array);

// A new C-contiguous float32 array; nullptr with a Python error set on failure.
PyObject* new_float_array(int ndim, const int64_t* shape);

// A small integer or float argument given as a Python scalar or sequence, as an ndarray (int64 or
// float32); a new reference, or nullptr with a Python error set.
PyObject* small_array(PyObject* object, const char* name, bool integers);

// False with a Python error set when `out` shares memory with an input.
bool check_overlap(PyObject* out, const Array& out_array, PyObject* input, const Array& array);

}  // namespace cpuattn
