#include "dispatch.h"

#include <cstdlib>
#include <cstring>

namespace dd2::cpu {

#if defined(__x86_64__)

namespace {

enum class Level { kV2, kV3, kV4 };

// The best set that the processor has and that DD2_FAST_CPU_ISA ("v2", "v3", "v4"), if set, allows.
Level detect() {
  __builtin_cpu_init();
  const char* limit = std::getenv("DD2_FAST_CPU_ISA");
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512cd");
  if (!v3 || (limit != nullptr && std::strcmp(limit, "v2") == 0)) return Level::kV2;
  if (!v4 || (limit != nullptr && std::strcmp(limit, "v3") == 0)) return Level::kV3;
  return Level::kV4;
}

const Level level = detect();

}  // namespace

#define DD2_DISPATCH(function, ...)                       \
  switch (level) {                                        \
    case Level::kV4: return v4::function(__VA_ARGS__);    \
    case Level::kV3: return v3::function(__VA_ARGS__);    \
    default: return v2::function(__VA_ARGS__);            \
  }

const char* instruction_set() {
  return level == Level::kV4 ? "x86-64-v4" : level == Level::kV3 ? "x86-64-v3" : "x86-64-v2";
}

#else

#define DD2_DISPATCH(function, ...) return generic::function(__VA_ARGS__);

const char* instruction_set() { return "generic"; }

#endif

void launch_conditional_score(const ConditionalScoreParams& params, int num_threads) {
  DD2_DISPATCH(launch_conditional_score, params, num_threads)
}

void launch_flow_solve(const FlowSolveParams& params, int num_threads) {
  DD2_DISPATCH(launch_flow_solve, params, num_threads)
}

void launch_image_normal(const ImageNormalParams& params, int num_threads) {
  DD2_DISPATCH(launch_image_normal, params, num_threads)
}

void launch_nearest_code(const NearestCodeParams& params, int num_threads) {
  DD2_DISPATCH(launch_nearest_code, params, num_threads)
}

void launch_sample_code(const SampleCodeParams& params, int num_threads) {
  DD2_DISPATCH(launch_sample_code, params, num_threads)
}

}  // namespace dd2::cpu
