// The types of the operators' arguments, by name; dd2/<operator>.h has what is in them.
#pragma once

namespace dd2 {

#define DD2_OPERATOR(name, Params) struct Params;
#define DD2_CUDA_OPERATOR DD2_OPERATOR
#include "operators.def"
#undef DD2_OPERATOR

}  // namespace dd2
