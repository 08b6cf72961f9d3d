#include "cuda_runtime.h"

#include "cuda/dense_score_float16.cu"
