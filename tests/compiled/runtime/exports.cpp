// Every operator's launcher, and the bytes of workspace that it wants; null, or the error.
#include "cuda/launch.h"

#include <exception>
#include <string>

namespace {

std::string message;

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

}  // namespace

#define DD2_CPU_OPERATOR(op, Params)
#define DD2_OPERATOR(op, Params)                                                \
  extern "C" const char* cuda_##op(const dd2::Params* params, void* stream) {   \
    return launched(&dd2::cuda::launch_##op, params, stream);                   \
  }                                                                             \
  extern "C" long long workspace_##op(const dd2::Params* params) {              \
    return dd2::plan_##op(*params, dd2::cuda::current_device()).workspace;      \
  }
#define DD2_CUDA_OPERATOR DD2_OPERATOR
#include "operators.def"
#undef DD2_OPERATOR

extern "C" void set_callbacks(callbacks::Callbacks with) { callbacks::all = with; }
