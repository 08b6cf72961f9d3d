// csrc/cuda/flow_solve.cu and its kernels on the CPU.
#include "named_kernels.h"
#include "tensor_shim.h"

#include "cuda/flow_solve.cu"

using namespace dd2;

#define DD2_VARIANTS(type)                                           \
  DD2_KERNEL(flow_solve_fwd_kernel<LogitType::type, 8, false>),      \
      DD2_KERNEL(flow_solve_fwd_kernel<LogitType::type, 8, true>),   \
      DD2_KERNEL(flow_solve_fwd_kernel<LogitType::type, 32, false>), \
      DD2_KERNEL(flow_solve_fwd_kernel<LogitType::type, 32, true>)

constexpr NamedKernel<FlowSolveParams> kKernels[] = {
    DD2_VARIANTS(kFloat32), DD2_VARIANTS(kBFloat16), DD2_VARIANTS(kFloat16)};

DD2_EXPORT(flow_solve, FlowSolveParams, kKernels)
