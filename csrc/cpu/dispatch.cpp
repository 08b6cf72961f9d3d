#include "dispatch.h"

#include <cstdlib>
#include <cstring>

namespace dd2::cpu {

namespace {

enum class Level { kLowest, kV3, kV4 };

// The best set that was built, the processor has and DD2_FAST_CPU_ISA ("v2", "v3", "v4"), if set,
// allows.
Level detect() {
#if defined(DD2_WITH_V3) || defined(DD2_WITH_V4)
  __builtin_cpu_init();
  const char* limit = std::getenv("DD2_FAST_CPU_ISA");
  const auto limited_to = [limit](const char* name) {
    return limit != nullptr && std::strcmp(limit, name) == 0;
  };
  const bool v3 = !limited_to("v2") && __builtin_cpu_supports("avx2") &&
                  __builtin_cpu_supports("fma");
#ifdef DD2_WITH_V4
  if (v3 && !limited_to("v3") && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd")) {
    return Level::kV4;
  }
#endif
#ifdef DD2_WITH_V3
  if (v3) return Level::kV3;
#endif
#endif
  return Level::kLowest;
}

const Level level = detect();

}  // namespace

#ifdef DD2_WITH_V4
#define DD2_CASE_V4(call) case Level::kV4: return v4::call;
#else
#define DD2_CASE_V4(call)
#endif
#ifdef DD2_WITH_V3
#define DD2_CASE_V3(call) case Level::kV3: return v3::call;
#else
#define DD2_CASE_V3(call)
#endif
#ifdef DD2_WITH_V2
#define DD2_LOWEST(call) v2::call
constexpr const char* kLowest = "x86-64-v2";
#else
#define DD2_LOWEST(call) generic::call
constexpr const char* kLowest = "generic";
#endif

const char* instruction_set() {
  return level == Level::kV4 ? "x86-64-v4" : level == Level::kV3 ? "x86-64-v3" : kLowest;
}

#define DD2_OPERATOR(name, Params)                                      \
  void launch_##name(const Params& params, int num_threads) {           \
    switch (level) {                                                    \
      DD2_CASE_V4(launch_##name(params, num_threads))                   \
      DD2_CASE_V3(launch_##name(params, num_threads))                   \
      default: return DD2_LOWEST(launch_##name(params, num_threads));   \
    }                                                                   \
  }
#include "operators.def"
#undef DD2_OPERATOR

}  // namespace dd2::cpu
