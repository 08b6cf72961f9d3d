// Functions of the kernels' headers on the CPU.
#include "tensor_shim.h"

#include "dd2/box_muller.cuh"
#include "dd2/filter_row.cuh"
#include "dd2/philox.cuh"

using namespace dd2;

extern "C" void box_muller(unsigned radius_word, unsigned angle_word, double* out) {
  out[0] = squared_radius<double>(static_cast<unsigned long long>(radius_word));
  direction(static_cast<unsigned long long>(angle_word), out[1], out[2]);
}

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

extern "C" void thresholds(const TeacherRows* p, float* out, bool staged) {
  const dim3 grid(static_cast<unsigned>(p->rows));
  const std::size_t shared = static_cast<std::size_t>(p->staged_floats()) * sizeof(float);
  staged ? dd2_shim::launch(threshold_kernel<true>, grid, kThreads, shared, *p, out)
         : dd2_shim::launch(threshold_kernel<false>, grid, kThreads, 0, *p, out);
}
