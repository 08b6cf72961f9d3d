// Entry points of the CPU kernels. Each kernel source is compiled once for every instruction set that
// the compiler knows, into a namespace of that name, DD2_ISA; dispatch.cpp picks one at run time.
// (GCC's target_clones would do this in one compilation, but it splits wide vectors into SSE halves
// before it inlines helpers into a clone.)
#pragma once

#include "dd2/conditional_score.h"
#include "dd2/flow_solve.h"
#include "dd2/image_normal.h"
#include "dd2/nearest_code.h"
#include "dd2/sample_code.h"

namespace dd2::cpu {

#define DD2_DECLARE(isa)                                                                   \
  namespace isa {                                                                          \
  void launch_conditional_score(const ConditionalScoreParams& params, int num_threads);    \
  void launch_flow_solve(const FlowSolveParams& params, int num_threads);                  \
  void launch_image_normal(const ImageNormalParams& params, int num_threads);              \
  void launch_nearest_code(const NearestCodeParams& params, int num_threads);              \
  void launch_sample_code(const SampleCodeParams& params, int num_threads);                \
  }
#ifdef DD2_ISA
DD2_DECLARE(DD2_ISA)
#endif
#ifdef DD2_WITH_GENERIC
DD2_DECLARE(generic)
#endif
#ifdef DD2_WITH_V2
DD2_DECLARE(v2)
#endif
#ifdef DD2_WITH_V3
DD2_DECLARE(v3)
#endif
#ifdef DD2_WITH_V4
DD2_DECLARE(v4)
#endif
#undef DD2_DECLARE

// The instruction set in use: "x86-64-v4", "x86-64-v3", "x86-64-v2" or "generic".
const char* instruction_set();

void launch_conditional_score(const ConditionalScoreParams& params, int num_threads);
void launch_flow_solve(const FlowSolveParams& params, int num_threads);
void launch_image_normal(const ImageNormalParams& params, int num_threads);
void launch_nearest_code(const NearestCodeParams& params, int num_threads);
void launch_sample_code(const SampleCodeParams& params, int num_threads);

}  // namespace dd2::cpu
