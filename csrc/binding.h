// Python calls to C++ functions of pointers (passed as int) and integers, which give
// nothing or an integer.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

namespace dllm {

template <typename T>
T argument(PyObject* value) {
  if constexpr (std::is_pointer_v<T>) {
    return static_cast<T>(PyLong_AsVoidPtr(value));
  } else {
    return static_cast<T>(PyLong_AsLongLong(value));
  }
}

// Python calling convention for a C function of pointers (as int) and integers.
template <auto Function>
struct Binding;

template <typename Result, typename... Args, Result (*Function)(Args...)>
struct Binding<Function> {
  static PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t count) {
    constexpr Py_ssize_t expected = sizeof...(Args);
    if (count != expected) {
      return PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd",
                          expected, count);
    }
    return invoke(args, std::index_sequence_for<Args...>{});
  }

  template <size_t... I>
  static PyObject* invoke(PyObject* const* args, std::index_sequence<I...>) {
    const std::tuple<Args...> values{argument<Args>(args[I])...};
    if (PyErr_Occurred()) return nullptr;
    if constexpr (std::is_void_v<Result>) {
      std::apply(Function, values);
      Py_RETURN_NONE;
    } else {
      return PyLong_FromLongLong(std::apply(Function, values));
    }
  }
};

template <auto Function>
PyMethodDef method(const char* name) {
  auto call = reinterpret_cast<void (*)(void)>(&Binding<Function>::call);
  return {name, reinterpret_cast<PyCFunction>(call), METH_FASTCALL, nullptr};
}

// One table per source file, ended by an entry without a name.
extern PyMethodDef runner_kernels[];
extern PyMethodDef candidate[];
extern PyMethodDef blocks[];
extern PyMethodDef choice[];
extern PyMethodDef spans[];
extern PyMethodDef int8[];
extern PyMethodDef reach[];

}  // namespace dllm
