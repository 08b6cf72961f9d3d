// The compilers' builtins that the shared headers use, for NVRTC, which has CUDA's functions only.
#pragma once

#ifdef __CUDACC_RTC__
#define __builtin_fabsf fabsf
#define __builtin_fmaf fmaf
#define __builtin_huge_valf() __int_as_float(0x7f800000)
#define __builtin_logf logf
#define __builtin_memcpy memcpy
#define __builtin_nanf nanf
#define __builtin_powf powf
#define __builtin_sqrt sqrt
#define __builtin_sqrtf sqrtf
#endif
