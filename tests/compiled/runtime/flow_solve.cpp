#include "launchers.h"

#include "cuda/flow_solve.cu"

DD2_EXPORT(flow_solve, FlowSolveParams)
