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

// The name of a dtype for error texts; "" for kOther, whose arrays bring their own.
const char* dtype_name(DType dtype);

// Sets the name of an unusual dtype to str(dtype); `names` keeps it alive. False with a Python
// error set on failure.
bool name_unusual_dtype(PyObject* dtype, std::forward_list<std::string>& names, Array& array);

// Describes an ndarray. `names` keeps the name of an unusual dtype alive for error texts. False
// with a Python error set when the object is not an array that can be read as one.
bool view_ndarray(PyObject* object, const char* name, std::forward_list<std::string>& names,
                  Array& array);

// Gives an array of known shape and dtype C-contiguous strides, kept in `strides`. Returns its size
// in bytes, -1 if that is beyond 64 bits or would be but for an axis of size 0.
int64_t set_c_strides(Array& array, int64_t* strides);

// A new C-contiguous ndarray of array's shape and float dtype, whose data array.data becomes;
// nullptr with a Python error set on failure.
PyObject* new_ndarray(Array& array);

// Memory as a one-dimensional ndarray of bytes; nullptr with a Python error set on failure.
PyObject* new_bytes(int64_t size, char*& data);

// A small integer or float argument given as a Python scalar or sequence, as an ndarray (int64 or
// float64); a new reference, or nullptr with a Python error set.
PyObject* small_array(PyObject* object, const char* name, bool integers);

// False with a Python error set when `out` shares memory with an input.
bool check_overlap(const Array& out, const Array& input);

}  // namespace cpuattn
