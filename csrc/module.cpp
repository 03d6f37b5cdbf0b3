// The extension module vllm_dllm._C (stable ABI, no torch).

#include "binding.h"

namespace {
// Raised with every change of what Python calls: `vllm_dllm/ops/extension.py` wants
// the same one.
constexpr long kVersion = 4;

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr,
                          nullptr,               nullptr, nullptr, nullptr};
}

PyMODINIT_FUNC PyInit__C() {
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  if (PyModule_AddIntConstant(module, "version", kVersion) != 0) {
    Py_DECREF(module);
    return nullptr;
  }
  for (PyMethodDef* methods :
       {dllm::runner_kernels, dllm::candidate, dllm::blocks, dllm::choice, dllm::spans,
        dllm::int8, dllm::reach}) {
    if (PyModule_AddFunctions(module, methods) != 0) {
      Py_DECREF(module);
      return nullptr;
    }
  }
  return module;
}
