#include "launchers.h"

#include "cuda/sample_code.cu"

DD2_EXPORT(sample_code, SampleCodeParams)
