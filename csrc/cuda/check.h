// What every launcher asks of the CUDA runtime.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "plan/plan.h"

namespace dd2::cuda {

inline void check(cudaError_t status, const char* kernel, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(kernel) + ": " + what + ": " + cudaGetErrorString(status));
  }
}

// Of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "dd2_fast", "current device");
  check(cudaDeviceGetAttribute(&value, attribute, device), "dd2_fast", "device attribute");
  return value;
}

// Bytes of dynamic shared memory that every kernel gets without asking.
constexpr long long kSharedUnasked = 48 * 1024 - kOwnShared;

// The most bytes of dynamic shared memory that `kernel` can have beside its own.
template <typename Kernel>
int largest_shared(Kernel kernel, const char* name) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), name, "kernel attributes");
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) -
         static_cast<int>(attributes.sharedSizeBytes);
}

template <typename Kernel, typename Params>
void launch_kernel(Kernel kernel, const Launch& launch, const Params& params, void* stream) {
  if (launch.shared > kSharedUnasked) {
    // Never less than the most: another thread may launch the kernel between these two calls.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               largest_shared(kernel, launch.kernel)),
          launch.kernel, "shared memory");
  }
  Params copy = params;
  void* arguments[] = {&copy};
  const dim3 grid(static_cast<unsigned>(launch.grid[0]), static_cast<unsigned>(launch.grid[1]));
  check(cudaLaunchKernel(kernel, grid, dim3(launch.threads), arguments,
                         static_cast<size_t>(launch.shared), static_cast<cudaStream_t>(stream)),
        launch.kernel, "launch");
}

}  // namespace dd2::cuda
