// The launcher DD2_LAUNCH of csrc/cuda, whose kernels run on the CPU; null, or the error.
#include <cuda_runtime.h>

#include "cuda/launch.h"

extern "C" const char* launch(const dd2::DD2_PARAMS* params, std::size_t shared_limit,
                              int processors, bool reverse_order) {
  static std::string message;
  dd2_shim::reverse_order = reverse_order;
  fake_runtime::device = {shared_limit, processors, {}};
  try {
    dd2::cuda::DD2_LAUNCH(*params, nullptr);
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}
