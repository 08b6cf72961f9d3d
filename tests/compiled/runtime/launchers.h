// Exports an operator's launcher: null, or the error.
#pragma once

#include "cuda_runtime.h"

#include <exception>
#include <string>

inline std::string message;

template <typename Params>
const char* launched(void (*launcher)(const Params&, void*), const Params* params, void* stream) {
  try {
    launcher(*params, stream);
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}

#define DD2_EXPORT(op, Params)                                                   \
  extern "C" const char* cuda_##op(const dd2::Params* params, void* stream) {    \
    return launched(&dd2::cuda::launch_##op, params, stream);                    \
  }
