#include "launchers.h"

#include "cuda/nearest_code.cu"

DD2_EXPORT(nearest_code, NearestCodeParams)
