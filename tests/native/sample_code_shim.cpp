// Runs csrc/include/dd2/sample_code.cuh on the CPU; returns null or the error.
#include "cuda_shim.h"

#include "dd2/sample_code.cuh"

namespace {

std::string message;

template <dd2::LogitType kType>
void launch(const dd2::SampleCodeParams& p, bool staged) {
  const dim3 grid(static_cast<unsigned>(p.teacher.rows));
  const size_t shared = staged ? p.teacher.vocabulary * sizeof(float) : 0;
  dd2_shim::launch(staged ? dd2::sample_code_fwd_kernel<kType, true>
                          : dd2::sample_code_fwd_kernel<kType, false>,
                   grid, dim3(dd2::kThreads), shared, p);
}

}  // namespace

extern "C" const char* sample_code(const dd2::SampleCodeParams* p, bool staged,
                                   bool reverse_order) {
  dd2_shim::reverse_order = reverse_order;
  try {
    switch (p->teacher.logit_type) {
      case dd2::LogitType::kFloat32: launch<dd2::LogitType::kFloat32>(*p, staged); break;
      case dd2::LogitType::kBFloat16: launch<dd2::LogitType::kBFloat16>(*p, staged); break;
      default: launch<dd2::LogitType::kFloat16>(*p, staged); break;
    }
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}

extern "C" void philox(const unsigned* counter, const unsigned* key, unsigned* out) {
  const dd2::PhiloxWords words =
      dd2::philox({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  for (int i = 0; i < 4; ++i) out[i] = words.word[i];
}

extern "C" double row_uniform(long long seed, long long row, unsigned stream) {
  return dd2::row_uniform(seed, row, stream);
}
