// SPDX-License-Identifier: MIT
#include "bindings/numpy_view.h"

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>

#include <algorithm>
#include <atomic>
#include <cstddef>

namespace cpuattn {
namespace {

static_assert(sizeof(npy_intp) == sizeof(int64_t), "shapes are read as int64_t");

// numpy.ma.MaskedArray, imported at first use; borrowed, or nullptr with a Python error set.
PyObject* masked_array_type() {
  static std::atomic<PyObject*> kept{nullptr};
  PyObject* type = kept.load(std::memory_order_acquire);
  if (type != nullptr) return type;
  PyObject* module = PyImport_ImportModule("numpy.ma");
  if (module == nullptr) return nullptr;
  type = PyObject_GetAttrString(module, "MaskedArray");
  Py_DECREF(module);
  PyObject* none = nullptr;
  if (type == nullptr || kept.compare_exchange_strong(none, type)) return type;
  Py_DECREF(type);  // another thread was first, with the same type
  return none;
}

// The type number of bfloat16, which NumPy gives out when ml_dtypes is imported.
std::atomic<int> bfloat16_number{NPY_NOTYPE};

bool is_bfloat16(PyArrayObject* array) {
  const int number = PyArray_TYPE(array);
  if (number == bfloat16_number.load(std::memory_order_relaxed)) return true;
  if (!PyTypeNum_ISUSERDEF(number) || PyArray_ITEMSIZE(array) != 2) return false;
  PyObject* text = PyObject_Str(reinterpret_cast<PyObject*>(PyArray_DESCR(array)));
  const bool found = text != nullptr && PyUnicode_CompareWithASCIIString(text, "bfloat16") == 0;
  Py_XDECREF(text);
  PyErr_Clear();
  if (found) bfloat16_number.store(number, std::memory_order_relaxed);
  return found;
}

DType dtype_of(PyArrayObject* array) {
  if (!PyArray_ISNOTSWAPPED(array)) return DType::kOther;
  switch (PyArray_TYPE(array)) {
    case NPY_FLOAT32:
      return DType::kFloat32;
    case NPY_FLOAT64:
      return DType::kFloat64;
    case NPY_FLOAT16:
      return DType::kFloat16;
    case NPY_BOOL:
      return DType::kBool;
    case NPY_INT32:
      return DType::kInt32;
    case NPY_LONG:
    case NPY_LONGLONG:
      return PyArray_ITEMSIZE(array) == 8 ? DType::kInt64 : DType::kOther;
    default:
      return is_bfloat16(array) ? DType::kBFloat16 : DType::kOther;
  }
}

// NumPy's type number of a float dtype.
int number_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return NPY_FLOAT64;
    case DType::kFloat16:
      return NPY_FLOAT16;
    case DType::kBFloat16:
      return bfloat16_number.load(std::memory_order_relaxed);
    default:
      return NPY_FLOAT32;
  }
}

// An array's memory as an ndarray that does not own it, of elements without meaning.
PyObject* borrowed_ndarray(const Array& array) {
  return PyArray_New(&PyArray_Type, array.ndim, array.shape, NPY_VOID, array.strides, array.data,
                     static_cast<int>(item_size(array.dtype)), 0, nullptr);
}

struct Extent {
  const char* begin;
  const char* end;
};

// The bytes between the lowest and the highest element; empty for an empty array.
Extent extent_of(const Array& array) {
  const char* low = array.data;
  const char* high = array.data;
  for (int i = 0; i < array.ndim; ++i) {
    if (array.shape[i] == 0) return {nullptr, nullptr};
    const int64_t reach = (array.shape[i] - 1) * array.strides[i];
    (reach < 0 ? low : high) += reach;
  }
  return {low, high + item_size(array.dtype)};
}

}  // namespace

bool import_numpy() {
  import_array1(false);
  return true;
}

bool is_ndarray(PyObject* object) { return PyArray_Check(object); }

const char* dtype_name(DType dtype) {
  static constexpr const char* names[] = {"float32", "float64", "float16", "bfloat16",
                                          "bool",    "int32",   "int64",   ""};
  return names[static_cast<int>(dtype)];
}

bool name_unusual_dtype(PyObject* dtype, std::forward_list<std::string>& names, Array& array) {
  PyObject* text = PyObject_Str(dtype);
  PyObject* bytes = text != nullptr ? PyUnicode_AsUTF8String(text) : nullptr;
  Py_XDECREF(text);
  if (bytes == nullptr) return false;
  names.emplace_front(PyBytes_AsString(bytes));
  Py_DECREF(bytes);
  array.dtype_name = names.front().c_str();
  return true;
}

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
  out.dtype = dtype_of(array);
  out.dtype_name = dtype_name(out.dtype);
  return out.dtype != DType::kOther ||
         name_unusual_dtype(reinterpret_cast<PyObject*>(PyArray_DESCR(array)), names, out);
}

int64_t set_c_strides(Array& array, int64_t* strides) {
  array.strides = strides;
  int64_t step = item_size(array.dtype);
  bool overflow = false;
  bool empty = false;
  for (int i = array.ndim - 1; i >= 0; --i) {
    strides[i] = step;
    empty |= array.shape[i] == 0;
    overflow |= __builtin_mul_overflow(step, std::max<int64_t>(array.shape[i], 1), &step);
  }
  return overflow ? -1 : empty ? 0 : step;
}

PyObject* new_ndarray(Array& array) {
  PyObject* made = PyArray_SimpleNew(array.ndim, array.shape, number_of(array.dtype));
  if (made != nullptr) array.data = PyArray_BYTES(reinterpret_cast<PyArrayObject*>(made));
  return made;
}

PyObject* new_bytes(int64_t size, char*& data) {
  const npy_intp length = size;
  PyObject* made = PyArray_SimpleNew(1, &length, NPY_UINT8);
  if (made != nullptr) data = PyArray_BYTES(reinterpret_cast<PyArrayObject*>(made));
  return made;
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
    cast = PyArray_FROM_OTF(array, integers ? NPY_INT64 : NPY_FLOAT64,
                            NPY_ARRAY_DEFAULT | NPY_ARRAY_FORCECAST);
  } else {
    PyErr_Format(PyExc_TypeError, "%s: must hold %s; got %R", name,
                 integers ? "integers" : "real numbers", object);
  }
  Py_DECREF(array);
  return cast;
}

bool check_overlap(const Array& out, const Array& input) {
  const Extent a = extent_of(out);
  const Extent b = extent_of(input);
  if (a.begin == nullptr || b.begin == nullptr || a.end <= b.begin || b.end <= a.begin) return true;
  // The extents meet; views interleaved in one buffer may still be disjoint, which NumPy can tell.
  PyObject* numpy = PyImport_ImportModule("numpy");
  if (numpy == nullptr) return false;
  PyObject* arrays[2] = {borrowed_ndarray(out), borrowed_ndarray(input)};
  PyObject* shares = nullptr;
  if (arrays[0] != nullptr && arrays[1] != nullptr) {
    shares = PyObject_CallMethod(numpy, "shares_memory", "OOi", arrays[0], arrays[1], 100000);
  }
  Py_XDECREF(arrays[0]);
  Py_XDECREF(arrays[1]);
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
               input.name);
  return false;
}

}  // namespace cpuattn
