// Entry points of the CPU kernels. Each kernel source is compiled once for every instruction set that
// the compiler knows, into a namespace of that name, DD2_ISA; dispatch.cpp picks one at run time.
// (GCC's target_clones would do this in one compilation, but it splits wide vectors into SSE halves
// before it inlines helpers into a clone.)
#pragma once

#include "operators.h"

namespace dd2::cpu {

#define DD2_OPERATOR(name, Params) void launch_##name(const Params& params, int num_threads);
#ifdef DD2_ISA
namespace DD2_ISA {
#include "operators.def"
}
#endif
#ifdef DD2_WITH_GENERIC
namespace generic {
#include "operators.def"
}
#endif
#ifdef DD2_WITH_V2
namespace v2 {
#include "operators.def"
}
#endif
#ifdef DD2_WITH_V3
namespace v3 {
#include "operators.def"
}
#endif
#ifdef DD2_WITH_V4
namespace v4 {
#include "operators.def"
}
#endif
// The same by the instruction set in use.
#include "operators.def"
#undef DD2_OPERATOR

// The instruction set in use: "x86-64-v4", "x86-64-v3", "x86-64-v2" or "generic".
const char* instruction_set();

}  // namespace dd2::cpu
