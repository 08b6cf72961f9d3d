#include "dd2/flow_solve.cuh"

#include "check.h"
#include "launch.h"

namespace dd2::cuda {
namespace {

constexpr const char* kOp = "flow_solve";

// Blocks that share the draws of a row, where the rows alone leave multiprocessors idle.
unsigned blocks_a_row(const FlowSolveParams& p) {
  const long long wanted = (2 * processor_count(kOp) + p.teacher.rows - 1) / p.teacher.rows;
  return static_cast<unsigned>(wanted < p.draws ? wanted : p.draws);
}

// Filtered rows that fit beside the kernel's static shared memory are staged.
template <LogitType kType, int kDim>
void launch_staged_or_not(const FlowSolveParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.teacher.rows), blocks_a_row(p));
  const auto staged_kernel = flow_solve_fwd_kernel<kType, kDim, true>;
  const size_t staged = flow_solve_shared_floats<kDim, true>(p) * sizeof(float);
  if (p.teacher.filtered() && fits_shared(staged_kernel, staged, kOp)) {
    launch(staged_kernel, grid, kThreads, staged, stream, p, kOp);
  } else {
    const size_t shared = flow_solve_shared_floats<kDim, false>(p) * sizeof(float);
    launch(flow_solve_fwd_kernel<kType, kDim, false>, grid, kThreads, shared, stream, p, kOp);
  }
}

template <LogitType kType>
void launch_dim(const FlowSolveParams& p, cudaStream_t stream) {
  p.dim <= 8 ? launch_staged_or_not<kType, 8>(p, stream)
             : launch_staged_or_not<kType, 32>(p, stream);
}

}  // namespace

void launch_flow_solve(const FlowSolveParams& p, void* stream) {
  if (p.teacher.rows <= 0 || p.draws <= 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (p.teacher.logit_type) {
    case LogitType::kFloat32: return launch_dim<LogitType::kFloat32>(p, cuda_stream);
    case LogitType::kBFloat16: return launch_dim<LogitType::kBFloat16>(p, cuda_stream);
    default: return launch_dim<LogitType::kFloat16>(p, cuda_stream);
  }
}

}  // namespace dd2::cuda
