// SPDX-License-Identifier: MIT
#include "bindings/dlpack.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstddef>
#include <exception>

#include "bindings/numpy_view.h"

namespace nb = nanobind;

namespace cpuattn {
namespace {

using nb::dlpack::dltensor;
using Code = nb::dlpack::dtype_code;

// DLManagedTensor of dlpack.h, up to DLPack 0.8.
struct Managed {
  dltensor tensor;
  void* context;
  void (*deleter)(Managed*);

  static constexpr const char* kName = "dltensor";
  static constexpr const char* kUsedName = "used_dltensor";
};

// DLManagedTensorVersioned of dlpack.h, from DLPack 1.0.
struct ManagedVersioned {
  uint32_t major, minor;
  void* context;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;
  dltensor tensor;

  static constexpr const char* kName = "dltensor_versioned";
  static constexpr const char* kUsedName = "used_dltensor_versioned";
  static constexpr uint64_t kReadOnly = 1;  // in flags
};

// DLPackExchangeAPI of dlpack.h, from DLPack 1.2: C functions that a library's type may offer.
// torch's take a tenth of the time of its methods.
struct ExchangeApi {
  uint32_t major, minor;
  const void* older;
  void* allocate;
  int (*from_object)(void* object, ManagedVersioned** managed);
  int (*to_object)(ManagedVersioned* managed, void** object);
};

const ExchangeApi* exchange_api(PyObject* object) {
  auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  PyObject* capsule = PyObject_GetAttrString(type, "__dlpack_c_exchange_api__");
  const ExchangeApi* api = nullptr;
  if (capsule != nullptr) {
    api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);  // what it points to lives as long as the process
  }
  PyErr_Clear();
  return api != nullptr && api->major == 1 ? api : nullptr;
}

PyObject* call_interop(const char* function, PyObject* first, PyObject* second) {
  PyObject* module = PyImport_ImportModule("cpuattn._interop");
  if (module == nullptr) return nullptr;
  PyObject* result = PyObject_CallMethod(module, function, "OO", first, second);
  Py_DECREF(module);
  return result;
}

// Takes the struct out of a capsule and marks it as used; nullptr if it holds another.
template <class Struct>
Struct* open_capsule(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, Struct::kName) == 0) return nullptr;
  auto* managed = static_cast<Struct*>(PyCapsule_GetPointer(capsule, Struct::kName));
  PyCapsule_SetName(capsule, Struct::kUsedName);
  return managed;
}

// A producer's struct, and how to give it back.
struct Held {
  void* managed = nullptr;
  void (*release)(void*) = nullptr;
  const dltensor* tensor = nullptr;
  bool writeable = false;
};

template <class Struct>
Held hold(Struct* managed, bool writeable) {
  const auto release = [](void* held) {
    auto* self = static_cast<Struct*>(held);
    if (self->deleter != nullptr) self->deleter(self);
  };
  return {managed, release, &managed->tensor, writeable};
}

bool is_writeable(const ManagedVersioned* managed) {
  return (managed->flags & ManagedVersioned::kReadOnly) == 0;
}

// Whether a torch tensor is its memory and nothing else.
bool is_plain(PyObject* tensor) {
  PyObject* requires_grad = PyObject_GetAttrString(tensor, "requires_grad");
  PyObject* is_neg = PyObject_CallMethod(tensor, "is_neg", nullptr);
  const bool plain = requires_grad == Py_False && is_neg == Py_False;
  Py_XDECREF(requires_grad);
  Py_XDECREF(is_neg);
  PyErr_Clear();
  return plain;
}

// The fast way; holds nothing where it does not apply, and the other one says why.
Held hold_by_api(PyObject* object) {
  const ExchangeApi* api = exchange_api(object);
  if (api == nullptr || !is_plain(object)) return {};
  ManagedVersioned* managed = nullptr;
  if (api->from_object(object, &managed) != 0) {
    PyErr_Clear();
    return {};
  }
  const Held held = hold(managed, is_writeable(managed));
  const int device = managed->tensor.device.device_type;
  const bool on_cpu = device == nb::device::cpu::value || device == nb::device::cuda_host::value;
  if (managed->major == 1 && on_cpu) return held;
  held.release(managed);
  return {};
}

// The way of every library; holds nothing with a Python error set on failure.
Held hold_by_capsule(PyObject* object, const char* name) {
  PyObject* text = PyUnicode_FromString(name);
  PyObject* capsule = text != nullptr ? call_interop("capsule", text, object) : nullptr;
  Py_XDECREF(text);
  if (capsule == nullptr) return {};
  Held held;
  if (auto* versioned = open_capsule<ManagedVersioned>(capsule)) {
    held = hold(versioned, is_writeable(versioned));
    if (versioned->major != 1) {
      held.release(versioned);
      held = {};
    }
  } else if (auto* managed = open_capsule<Managed>(capsule)) {
    // This struct cannot say that an array is read-only. Types whose arrays are (JAX) lack the
    // operators that would change them.
    held = hold(managed, PyObject_HasAttrString(object, "__iadd__") == 1);
  }
  Py_DECREF(capsule);
  if (held.managed == nullptr) {
    PyErr_Format(PyExc_TypeError, "%s: must speak DLPack 0 or 1; got another version", name);
  }
  return held;
}

DType dtype_of(const nb::dlpack::dtype& dtype) {
  static constexpr struct {
    Code code;
    uint8_t bits;
    DType dtype;
  } known[] = {{Code::Float, 32, DType::kFloat32}, {Code::Float, 64, DType::kFloat64},
               {Code::Float, 16, DType::kFloat16}, {Code::Bfloat, 16, DType::kBFloat16},
               {Code::Bool, 8, DType::kBool},      {Code::Int, 32, DType::kInt32},
               {Code::Int, 64, DType::kInt64}};
  for (const auto& row : known) {
    if (dtype.code == static_cast<uint8_t>(row.code) && dtype.bits == row.bits && dtype.lanes == 1)
      return row.dtype;
  }
  return DType::kOther;
}

bool name_dtype(PyObject* object, std::forward_list<std::string>& names, Array& array) {
  array.dtype_name = dtype_name(array.dtype);
  if (array.dtype != DType::kOther) return true;
  PyObject* dtype = PyObject_GetAttrString(object, "dtype");
  if (dtype == nullptr) {
    PyErr_Clear();
    array.dtype_name = "an unnamed dtype";
    return true;
  }
  const bool ok = name_unusual_dtype(dtype, names, array);
  Py_DECREF(dtype);
  if (ok) array.dtype_name += names.front().rfind('.') + 1;  // without "torch."
  return ok;
}

}  // namespace

bool speaks_dlpack(PyObject* object) { return PyObject_HasAttrString(object, "__dlpack__") == 1; }

Tensor::~Tensor() {
  if (managed_ != nullptr) release_(managed_);
}

bool Tensor::view(PyObject* object, const char* name, std::forward_list<std::string>& names,
                  Array& array) {
  Held held = hold_by_api(object);
  if (held.managed == nullptr) held = hold_by_capsule(object, name);
  if (held.managed == nullptr) return false;
  managed_ = held.managed;
  release_ = held.release;

  static const int64_t no_axes = 0;  // null pointers would mean "not given"
  static char no_elements;
  const dltensor& tensor = *held.tensor;
  array.name = name;
  array.ndim = tensor.ndim;
  array.shape = tensor.ndim > 0 ? tensor.shape : &no_axes;
  array.dtype = dtype_of(tensor.dtype);
  array.writeable = held.writeable;
  strides_.resize(static_cast<size_t>(array.ndim) + 1);
  set_c_strides(array, strides_.data());
  const bool empty =
      std::find(array.shape, array.shape + array.ndim, 0) != array.shape + array.ndim;
  for (int i = 0; i < array.ndim && tensor.strides != nullptr; ++i) {
    // Where there is no second element, the stride may be any number.
    if (empty || array.shape[i] < 2) continue;
    strides_[static_cast<size_t>(i)] = tensor.strides[i] * item_size(array.dtype);
  }
  if (tensor.data == nullptr && !empty) {
    PyErr_Format(PyExc_TypeError, "%s: must have its elements in memory; got a tensor without",
                 name);
    return false;
  }
  array.data = empty ? &no_elements : static_cast<char*>(tensor.data) + tensor.byte_offset;
  return name_dtype(object, names, array);
}

PyObject* new_tensor(Array& array, int64_t bytes) {
  constexpr int64_t kAlignment = 64;  // JAX copies what is aligned to less
  if (bytes < 0 || bytes > INT64_MAX - kAlignment) return PyErr_NoMemory();
  char* memory = nullptr;
  PyObject* owner = new_bytes(bytes + kAlignment, memory);
  if (owner == nullptr) return nullptr;
  array.data = memory + (-reinterpret_cast<intptr_t>(memory) & (kAlignment - 1));
  const Code code = array.dtype == DType::kBFloat16 ? Code::Bfloat : Code::Float;
  const nb::dlpack::dtype dtype{static_cast<uint8_t>(code),
                                static_cast<uint8_t>(8 * item_size(array.dtype)), 1};
  try {
    const nb::object owned = nb::steal(owner);
    const nb::ndarray<nb::array_api, nb::device::cpu> made(
        array.data, static_cast<size_t>(array.ndim), reinterpret_cast<const size_t*>(array.shape),
        owned, nullptr, dtype);
    return nb::cast(made, nb::rv_policy::reference).release().ptr();
  } catch (nb::python_error& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyObject* in_kind(PyObject* made, PyObject* like) {
  const ExchangeApi* api = exchange_api(like);
  if (api == nullptr) return call_interop("in_kind", made, like);
  try {
    const nb::object capsule =
        nb::handle(made).attr("__dlpack__")(nb::arg("max_version") = nb::make_tuple(1, 0));
    void* result = nullptr;
    auto* managed = open_capsule<ManagedVersioned>(capsule.ptr());
    if (managed != nullptr && api->to_object(managed, &result) == 0) {
      return static_cast<PyObject*>(result);
    }
  } catch (nb::python_error& error) {
    error.restore();
  }
  return nullptr;
}

}  // namespace cpuattn
