// Runs csrc/include/dd2/conditional_score.cuh on the CPU; returns null or the error.
#include "cuda_shim.h"

#include "dd2/conditional_score.cuh"

namespace {

std::string message;

template <dd2::LogitType kType, int kDim, bool kJacobian, bool kStaged>
void launch(const dd2::ConditionalScoreParams& p) {
  const size_t shared = dd2::conditional_score_shared_floats<kDim, kStaged>(p) * sizeof(float);
  const dim3 grid(static_cast<unsigned>(p.teacher.rows), dd2::conditional_score_blocks<kDim>(p));
  dd2_shim::launch(dd2::conditional_score_fwd_kernel<kType, kDim, kJacobian, kStaged>, grid,
                   dim3(dd2::kThreads), shared, p);
}

template <dd2::LogitType kType, int kDim>
void launch(const dd2::ConditionalScoreParams& p, bool staged) {
  if (p.direction != nullptr) {
    staged ? launch<kType, kDim, true, true>(p) : launch<kType, kDim, true, false>(p);
  } else {
    staged ? launch<kType, kDim, false, true>(p) : launch<kType, kDim, false, false>(p);
  }
}

template <dd2::LogitType kType>
void launch(const dd2::ConditionalScoreParams& p, bool staged) {
  p.dim <= 8 ? launch<kType, 8>(p, staged) : launch<kType, 32>(p, staged);
}

}  // namespace

extern "C" const char* conditional_score(const dd2::ConditionalScoreParams* p, bool staged,
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
