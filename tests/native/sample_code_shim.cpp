// csrc/cuda/sample_code.cu and its kernels on the CPU.
#include "named_kernels.h"
#include "tensor_shim.h"

#include "cuda/sample_code.cu"

using namespace dd2;

#define DD2_VARIANTS(type)                                              \
  DD2_KERNEL(sample_code_fwd_kernel<LogitType::type, false>),           \
      DD2_KERNEL(sample_code_fwd_kernel<LogitType::type, true>)

constexpr NamedKernel<SampleCodeParams> kKernels[] = {
    DD2_VARIANTS(kFloat32), DD2_VARIANTS(kBFloat16), DD2_VARIANTS(kFloat16)};

DD2_EXPORT(sample_code, SampleCodeParams, kKernels)

extern "C" void philox(const unsigned* counter, const unsigned* key, unsigned* out) {
  const PhiloxWords words =
      dd2::philox({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  for (int i = 0; i < 4; ++i) out[i] = words.word[i];
}

extern "C" double row_uniform(long long seed, long long row, unsigned stream) {
  return dd2::row_uniform(seed, row, stream);
}

// The smallest logit that every row of float32 logits keeps, NaN of an invalid one.
template <bool kStaged>
void threshold_kernel(TeacherRows p, float* out) {
  DD2_DYNAMIC_SHARED(float, staged);
  __shared__ Selection selection;
  const GuidedRow<LogitType::kFloat32> row(p, blockIdx.x);
  const RowFilter filter = filter_row<kStaged>(row, p, staged, selection);
  if (threadIdx.x == 0) out[blockIdx.x] = filter.invalid ? quiet_nan() : filter.threshold;
}

extern "C" const char* thresholds(const TeacherRows* p, float* out, bool staged) {
  return error_of([&] {
    const dim3 grid(static_cast<unsigned>(p->rows));
    const std::size_t shared = static_cast<std::size_t>(p->staged_floats()) * sizeof(float);
    staged ? dd2_shim::launch(threshold_kernel<true>, grid, kThreads, shared, *p, out)
           : dd2_shim::launch(threshold_kernel<false>, grid, kThreads, 0, *p, out);
  });
}
