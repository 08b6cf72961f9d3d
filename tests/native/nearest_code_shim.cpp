// Runs csrc/include/dd2/nearest_code.cuh on the CPU; returns null or the error.
#include "cuda_shim.h"

#include "dd2/nearest_code.cuh"

namespace {

std::string message;

}  // namespace

extern "C" const char* nearest_code(const dd2::NearestCodeParams* p, bool reverse_order) {
  dd2_shim::reverse_order = reverse_order;
  const dim3 grid(static_cast<unsigned>((p->rows + dd2::kBlockTokens - 1) / dd2::kBlockTokens));
  try {
    dd2_shim::launch(p->dim <= 8    ? dd2::nearest_code_fwd_kernel<8, false>
                     : p->dim <= 32 ? dd2::nearest_code_fwd_kernel<32, false>
                                    : dd2::nearest_code_fwd_kernel<32, true>,
                     grid, dim3(dd2::kThreads), 0, *p);
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}
