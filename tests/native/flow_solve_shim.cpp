// Runs csrc/include/dd2/flow_solve.cuh on the CPU; returns null or the error.
#include "cuda_shim.h"

#include "dd2/flow_solve.cuh"

namespace {

std::string message;

template <dd2::LogitType kType, int kDim, bool kStaged>
void launch(const dd2::FlowSolveParams& p, unsigned blocks) {
  const size_t shared = dd2::flow_solve_shared_floats<kDim, kStaged>(p) * sizeof(float);
  const dim3 grid(static_cast<unsigned>(p.teacher.rows), blocks);
  dd2_shim::launch(dd2::flow_solve_fwd_kernel<kType, kDim, kStaged>, grid, dim3(dd2::kThreads),
                   shared, p);
}

template <dd2::LogitType kType>
void launch(const dd2::FlowSolveParams& p, bool staged, unsigned blocks) {
  if (p.dim <= 8) {
    staged ? launch<kType, 8, true>(p, blocks) : launch<kType, 8, false>(p, blocks);
  } else {
    staged ? launch<kType, 32, true>(p, blocks) : launch<kType, 32, false>(p, blocks);
  }
}

}  // namespace

extern "C" const char* flow_solve(const dd2::FlowSolveParams* p, bool staged, unsigned blocks,
                                  bool reverse_order) {
  dd2_shim::reverse_order = reverse_order;
  try {
    switch (p->teacher.logit_type) {
      case dd2::LogitType::kFloat32: launch<dd2::LogitType::kFloat32>(*p, staged, blocks); break;
      case dd2::LogitType::kBFloat16: launch<dd2::LogitType::kBFloat16>(*p, staged, blocks); break;
      default: launch<dd2::LogitType::kFloat16>(*p, staged, blocks); break;
    }
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}
