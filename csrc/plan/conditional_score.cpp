#include "dd2/conditional_score.h"

#include "dd2/dense_workspace.h"
#include "plan.h"

namespace dd2 {
namespace {

constexpr long long kSplitBlocks = 64;  // each reads the whole codebook once

// Whether tensor cores over all codes take less time than one block a row over the kept ones, by
// the lane-instructions of the busiest multiprocessor, as bench/tools/counted.py counts them.
bool dense_pays(const ConditionalScoreParams& p, long long processors) {
  // Sums of longer codes do not fit in a thread's registers.
  if (p.dim > (p.direction != nullptr ? 32 : 64)) return false;
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

// One block a row; filtered rows are staged in shared memory where they fit.
Launch row_launch(const ConditionalScoreParams& p, const Device& device) {
  const TeacherRows& teacher = p.teacher;
  const int width = p.dim <= 8 ? 8 : 32;
  const long long vectors =
      (width == 8 ? vector_floats<8>(p) : vector_floats<32>(p)) * sizeof(float);
  const long long row = row_bytes(teacher);
  const bool jacobian = p.direction != nullptr;
  const bool staged = teacher.filtered() && device.holds(vectors + row);
  // The loss needs all dimensions of a token in one block.
  const long long blocks = p.csd.loss != nullptr ? 1 : ceil_divide(p.dim, width);
  const LogitType type = teacher.filtered() ? LogitType::kAny : teacher.logit_type;
  return {"conditional_score_fwd_kernel", {type, width, jacobian, staged},
          {teacher.rows, blocks}, kThreads, staged ? vectors + row : vectors};
}

std::vector<Launch> dense_launches(const ConditionalScoreParams& p, const Device& device) {
  const TeacherRows& teacher = p.teacher;
  const LogitType type = teacher.logit_type;
  const bool jacobian = p.direction != nullptr, filtered = teacher.filtered();
  const int width = dense_dim(p.dim), direct = p.dim <= 8 ? 8 : 32;
  const long long tiles = DenseWorkspace::tile_count(p);
  const long long blocks = ceil_divide(teacher.rows * p.draws, kDenseTokens);
  const long long row = row_bytes(teacher);
  const bool staged = device.holds(row);
  std::vector<Launch> launches;
  launches.push_back({"split_codebook_kernel", {width},
                      {tiles < kSplitBlocks ? tiles : kSplitBlocks, 1}, kThreads, 0});
  if (filtered) {
    launches.push_back(
        {"row_filter_kernel", {teacher.filter_threads(staged), staged}, {teacher.rows, 1},
         teacher.filter_threads(staged), staged ? row : 0});
  }
  launches.push_back({"dense_score_fwd_kernel", {type, width, jacobian, filtered}, {blocks, 1},
                      kDenseThreads, dense_shared_bytes(width, jacobian)});
  const long long vectors =
      (direct == 8 ? vector_floats<8>(p) : vector_floats<32>(p)) * sizeof(float);
  launches.push_back({"direct_score_fwd_kernel", {direct, jacobian},
                      {2 * device.processors, 1}, kThreads, vectors});
  return launches;
}

}  // namespace

DD2_LAYOUT(conditional_score, ConditionalScoreParams)

// Tensor cores where there is a workspace.
Plan plan_conditional_score(const ConditionalScoreParams& p, const Device& device) {
  if (p.teacher.rows <= 0 || p.draws <= 0) return {};
  const long long bytes = dense_pays(p, device.processors) ? DenseWorkspace::bytes(p) : 0;
  if (p.workspace != nullptr) return {dense_launches(p, device), bytes};
  return {{row_launch(p, device)}, bytes};
}

}  // namespace dd2
