#include "dd2/conditional_score.cuh"
#include "dd2/split_codebook.cuh"

#include "check.h"
#include "dense_score.h"
#include "launch.h"

namespace dd2::cuda {
namespace {

constexpr const char* kOp = "conditional_score";

// Filtered rows that fit beside the kernel's static shared memory are staged.
template <LogitType kType, int kDim, bool kJacobian>
void launch_staged_or_not(const ConditionalScoreParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.teacher.rows), conditional_score_blocks<kDim>(p));
  const auto staged_kernel = conditional_score_fwd_kernel<kType, kDim, kJacobian, true>;
  const size_t staged = conditional_score_shared_floats<kDim, true>(p) * sizeof(float);
  if (p.teacher.filtered() && fits_shared(staged_kernel, staged, kOp)) {
    launch(staged_kernel, grid, kThreads, staged, stream, p, kOp);
  } else {
    const size_t shared = conditional_score_shared_floats<kDim, false>(p) * sizeof(float);
    launch(conditional_score_fwd_kernel<kType, kDim, kJacobian, false>, grid, kThreads, shared,
           stream, p, kOp);
  }
}

template <LogitType kType>
void launch_rows(const ConditionalScoreParams& p, cudaStream_t stream) {
  const bool jacobian = p.direction != nullptr;
  if (p.dim <= 8) {
    jacobian ? launch_staged_or_not<kType, 8, true>(p, stream)
             : launch_staged_or_not<kType, 8, false>(p, stream);
  } else {
    jacobian ? launch_staged_or_not<kType, 32, true>(p, stream)
             : launch_staged_or_not<kType, 32, false>(p, stream);
  }
}

long long ceil_divide(long long a, long long b) { return (a + b - 1) / b; }

// Whether tensor cores over all codes take less time than one block a row over the kept ones, by
// the lane-instructions of the busiest multiprocessor, as bench/counted.py counts them.
bool dense_pays(const ConditionalScoreParams& p, long long processors) {
  if (p.dim > largest_dense_dim(p)) return false;
  const TeacherRows& teacher = p.teacher;
  // Top-p alone keeps what the logits say: a quarter is a guess.
  const long long kept = !teacher.filtered()                                  ? teacher.vocabulary
                         : teacher.top_k > 0 && teacher.top_k < teacher.vocabulary
                             ? teacher.top_k
                             : teacher.vocabulary / 4;
  const long long row_work = p.draws * kept * (7 * p.dim + 46);
  // Tokens come by the 64; a processor's first two such blocks cannot hide each other's latency.
  const long long dense_work = 64 * teacher.vocabulary * (p.dim <= 16 ? 22 : p.dim <= 32 ? 29 : 37);
  const long long rounds = ceil_divide(teacher.rows * p.draws, 64 * processors);
  return dense_work * (rounds < 3 ? 3 : rounds) < row_work * ceil_divide(teacher.rows, processors);
}

template <LogitType kType>
void launch_type(const ConditionalScoreParams& p, cudaStream_t stream) {
  p.workspace != nullptr ? launch_dense_score<kType>(p, stream) : launch_rows<kType>(p, stream);
}

}  // namespace

long long conditional_score_workspace(const ConditionalScoreParams& p) {
  if (p.teacher.rows <= 0 || p.draws <= 0) return 0;
  return dense_pays(p, processor_count(kOp)) ? DenseWorkspace::bytes(p) : 0;
}

void launch_conditional_score(const ConditionalScoreParams& p, void* stream) {
  if (p.teacher.rows <= 0 || p.draws <= 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (p.teacher.logit_type) {
    case LogitType::kFloat32: return launch_type<LogitType::kFloat32>(p, cuda_stream);
    case LogitType::kBFloat16: return launch_type<LogitType::kBFloat16>(p, cuda_stream);
    default: return launch_type<LogitType::kFloat16>(p, cuda_stream);
  }
}

}  // namespace dd2::cuda
