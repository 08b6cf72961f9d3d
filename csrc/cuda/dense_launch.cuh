// Launches the kernels of dense_score.cuh for one type of logits; each type is compiled by itself,
// for the time it takes.
#pragma once

#include "dd2/dense_score.cuh"
#include "dd2/direct_score.cuh"

#include "check.h"
#include "dense_score.h"

namespace dd2::cuda {
namespace dense {

constexpr const char* kOp = "conditional_score";
constexpr long long kSplitBlocks = 64;  // each reads the whole codebook once

template <LogitType kType>
void launch_row_filter(const ConditionalScoreParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.teacher.rows));
  const size_t staged = static_cast<size_t>(p.teacher.staged_floats()) * sizeof(float);
  if (fits_shared(row_filter_kernel<kType, true>, staged, kOp)) {
    launch(row_filter_kernel<kType, true>, grid, kThreads, staged, stream, p, kOp);
  } else {
    launch(row_filter_kernel<kType, false>, grid, kThreads, 0, stream, p, kOp);
  }
}

template <LogitType kType, int kDim, bool kJacobian>
void launch_direct(const ConditionalScoreParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(2 * processor_count(kOp)));
  const size_t shared = conditional_score_shared_floats<kDim, false>(p) * sizeof(float);
  launch(direct_score_fwd_kernel<kType, kDim, kJacobian>, grid, kThreads, shared, stream, p, kOp);
}

template <LogitType kType, int kDim, bool kJacobian>
void launch_kernels(const ConditionalScoreParams& p, cudaStream_t stream) {
  const long long tokens = p.teacher.rows * p.draws, tiles = DenseWorkspace::tile_count(p);
  const dim3 split(static_cast<unsigned>(tiles < kSplitBlocks ? tiles : kSplitBlocks));
  const dim3 blocks(static_cast<unsigned>((tokens + kDenseTokens - 1) / kDenseTokens));
  const size_t shared = dense_shared_bytes<kDim, kJacobian>();
  launch(split_codebook_kernel<kDim>, split, kThreads, 0, stream, p, kOp);
  if (p.teacher.filtered()) {
    launch_row_filter<kType>(p, stream);
    launch(dense_score_fwd_kernel<kType, kDim, kJacobian, true>, blocks, kDenseThreads, shared,
           stream, p, kOp);
  } else {
    launch(dense_score_fwd_kernel<kType, kDim, kJacobian, false>, blocks, kDenseThreads, shared,
           stream, p, kOp);
  }
  p.dim <= 8 ? launch_direct<kType, 8, kJacobian>(p, stream)
             : launch_direct<kType, 32, kJacobian>(p, stream);
}

template <LogitType kType, bool kJacobian>
void launch_dim(const ConditionalScoreParams& p, cudaStream_t stream) {
  if (p.dim <= 16) return launch_kernels<kType, 16, kJacobian>(p, stream);
  if (kJacobian || p.dim <= 32) return launch_kernels<kType, 32, kJacobian>(p, stream);
  if constexpr (!kJacobian) launch_kernels<kType, 64, false>(p, stream);
}

}  // namespace dense

template <LogitType kType>
void launch_dense_score(const ConditionalScoreParams& p, cudaStream_t stream) {
  p.direction != nullptr ? dense::launch_dim<kType, true>(p, stream)
                         : dense::launch_dim<kType, false>(p, stream);
}

}  // namespace dd2::cuda
