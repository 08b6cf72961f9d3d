#include "cuda_runtime.h"

#include "cuda/dense_score_bfloat16.cu"
