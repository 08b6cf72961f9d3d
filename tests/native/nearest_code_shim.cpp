// csrc/cuda/nearest_code.cu and its kernels on the CPU.
#include "named_kernels.h"

#include "cuda/nearest_code.cu"

using namespace dd2;

constexpr NamedKernel<NearestCodeParams> kKernels[] = {
    DD2_KERNEL(nearest_code_fwd_kernel<8, false, false>),
    DD2_KERNEL(nearest_code_fwd_kernel<8, false, true>),
    DD2_KERNEL(nearest_code_fwd_kernel<32, false, false>),
    DD2_KERNEL(nearest_code_fwd_kernel<32, false, true>),
    DD2_KERNEL(nearest_code_fwd_kernel<32, true, false>),
    DD2_KERNEL(nearest_code_fwd_kernel<32, true, true>)};

DD2_EXPORT(nearest_code, NearestCodeParams, kKernels)
