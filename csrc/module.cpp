// The extension module vllm_dllm._C (stable ABI, no torch).

#include "binding.h"

namespace {
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr,
                          nullptr,               nullptr, nullptr, nullptr};
}

PyMODINIT_FUNC PyInit__C() {
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  for (PyMethodDef* methods :
       {dllm::runner_kernels, dllm::candidate, dllm::blocks, dllm::choice, dllm::spans,
        dllm::int8}) {
    if (PyModule_AddFunctions(module, methods) != 0) {
      Py_DECREF(module);
      return nullptr;
    }
  }
  return module;
}
