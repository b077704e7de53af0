// SPDX-License-Identifier: MIT
#include "bindings/numpy_view.h"

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>

#include <cstddef>

namespace cpuattn {
namespace {

static_assert(sizeof(npy_intp) == sizeof(int64_t), "shapes are read as int64_t");

PyObject* masked_array_type() {
  static PyObject* type = nullptr;
  if (type == nullptr) {
    PyObject* module = PyImport_ImportModule("numpy.ma");
    if (module == nullptr) return nullptr;
    type = PyObject_GetAttrString(module, "MaskedArray");
    Py_DECREF(module);
  }
  return type;
}

DType dtype_of(PyArrayObject* array, const char** name) {
  if (PyArray_ISNOTSWAPPED(array)) {
    switch (PyArray_TYPE(array)) {
      case NPY_FLOAT32:
        *name = "float32";
        return DType::kFloat32;
      case NPY_BOOL:
        *name = "bool";
        return DType::kBool;
      case NPY_INT32:
        *name = "int32";
        return DType::kInt32;
      case NPY_LONG:
      case NPY_LONGLONG:
        if (PyArray_ITEMSIZE(array) == 8) {
          *name = "int64";
          return DType::kInt64;
        }
        break;
      default:
        break;
    }
  }
  *name = nullptr;
  return DType::kOther;
}

struct Extent {
  const char* begin;
  const char* end;
};

// The bytes between the lowest and the highest element; empty for an empty array.
Extent extent_of(const Array& array, int64_t item_size) {
  const char* low = array.data;
  const char* high = array.data;
  for (int i = 0; i < array.ndim; ++i) {
    if (array.shape[i] == 0) return {nullptr, nullptr};
    const int64_t reach = (array.shape[i] - 1) * array.strides[i];
    (reach < 0 ? low : high) += reach;
  }
  return {low, high + item_size};
}

}  // namespace

bool import_numpy() {
  import_array1(false);
  return true;
}

bool is_ndarray(PyObject* object) { return PyArray_Check(object); }

bool speaks_dlpack(PyObject* object) { return PyObject_HasAttrString(object, "__dlpack__") == 1; }

bool view_ndarray(PyObject* object, const char* name, std::forward_list<std::string>& names,
                  Array& out) {
  if (!PyArray_CheckExact(object)) {
    PyObject* masked = masked_array_type();
    if (masked == nullptr) return false;
    if (PyObject_IsInstance(object, masked) == 1) {
      PyErr_Format(PyExc_TypeError,
                   "%s: a MaskedArray's own mask would be ignored; got MaskedArray, pass .data and "
                   "use mask=",
                   name);
      return false;
    }
  }
  auto* array = reinterpret_cast<PyArrayObject*>(object);
  out.name = name;
  out.data = PyArray_BYTES(array);
  out.ndim = PyArray_NDIM(array);
  // A 0-d array has no shape pointer of its own, and null means "not given".
  static const int64_t no_axes = 0;
  const bool scalar = out.ndim == 0;
  out.shape = scalar ? &no_axes : reinterpret_cast<const int64_t*>(PyArray_DIMS(array));
  out.strides = scalar ? &no_axes : reinterpret_cast<const int64_t*>(PyArray_STRIDES(array));
  out.writeable = PyArray_ISWRITEABLE(array);
  out.dtype = dtype_of(array, &out.dtype_name);
  if (out.dtype == DType::kOther) {
    PyObject* string = PyObject_Str(reinterpret_cast<PyObject*>(PyArray_DESCR(array)));
    if (string == nullptr) return false;
    PyObject* bytes = PyUnicode_AsUTF8String(string);
    Py_DECREF(string);
    if (bytes == nullptr) return false;
    names.emplace_front(PyBytes_AsString(bytes));
    Py_DECREF(bytes);
    out.dtype_name = names.front().c_str();
  }
  return true;
}

PyObject* new_float_array(int ndim, const int64_t* shape) {
  npy_intp dims[NPY_MAXDIMS];
  for (int i = 0; i < ndim; ++i) dims[i] = static_cast<npy_intp>(shape[i]);
  return PyArray_SimpleNew(ndim, dims, NPY_FLOAT32);
}

PyObject* small_array(PyObject* object, const char* name, bool integers) {
  PyObject* array = PyArray_FROM_OTF(object, NPY_NOTYPE, NPY_ARRAY_DEFAULT);
  if (array == nullptr) return nullptr;
  const int type = PyArray_TYPE(reinterpret_cast<PyArrayObject*>(array));
  const bool empty = PyArray_SIZE(reinterpret_cast<PyArrayObject*>(array)) == 0;
  const bool fits = empty || (integers ? PyTypeNum_ISINTEGER(type)
                                       : PyTypeNum_ISFLOAT(type) || PyTypeNum_ISINTEGER(type));
  PyObject* cast = nullptr;
  if (fits) {
    cast = PyArray_FROM_OTF(array, integers ? NPY_INT64 : NPY_FLOAT32,
                            NPY_ARRAY_DEFAULT | NPY_ARRAY_FORCECAST);
  } else {
    PyErr_Format(PyExc_TypeError, "%s: must hold %s; got %R", name,
                 integers ? "integers" : "real numbers", object);
  }
  Py_DECREF(array);
  return cast;
}

bool check_overlap(PyObject* out, const Array& out_array, PyObject* input, const Array& array) {
  const int64_t item = array.dtype == DType::kBool ? 1 : array.dtype == DType::kInt64 ? 8 : 4;
  const Extent a = extent_of(out_array, 4);
  const Extent b = extent_of(array, item);
  if (a.begin == nullptr || b.begin == nullptr || a.end <= b.begin || b.end <= a.begin) return true;
  // The extents meet; views interleaved in one buffer may still be disjoint, which NumPy can tell.
  PyObject* numpy = PyImport_ImportModule("numpy");
  if (numpy == nullptr) return false;
  PyObject* shares = PyObject_CallMethod(numpy, "shares_memory", "OOi", out, input, 100000);
  Py_DECREF(numpy);
  bool overlap = true;
  if (shares == nullptr) {
    PyErr_Clear();  // too hard to tell: refuse
  } else {
    overlap = PyObject_IsTrue(shares) == 1;
    Py_DECREF(shares);
  }
  if (!overlap) return true;
  PyErr_Format(PyExc_ValueError, "out: must not share memory with an input; got an overlap with %s",
               array.name);
  return false;
}

}  // namespace cpuattn
