// What every launcher asks of the CUDA runtime.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace dd2::cuda {

inline void check(cudaError_t status, const char* op, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(op) + ": " + what + ": " + cudaGetErrorString(status));
  }
}

// Multiprocessors of the current device.
inline int processor_count(const char* op) {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), op, "current device");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), op,
        "multiprocessors");
  return count;
}

// Bytes of dynamic shared memory that every kernel here gets without asking: of 48 KiB, the static
// ones take the rest.
constexpr size_t kSharedUnasked = 32 * 1024;

// The most bytes of dynamic shared memory that `kernel` can have beside its static ones.
template <typename Kernel>
int largest_shared(Kernel kernel, const char* op) {
  int device = 0, limit = 0;
  check(cudaGetDevice(&device), op, "current device");
  check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), op,
        "shared memory limit");
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), op, "kernel attributes");
  return limit - static_cast<int>(attributes.sharedSizeBytes);
}

template <typename Kernel>
bool fits_shared(Kernel kernel, size_t shared, const char* op) {
  return static_cast<long long>(shared) <= largest_shared(kernel, op);
}

template <typename Kernel, typename Params>
void launch(Kernel kernel, dim3 grid, int threads, size_t shared, cudaStream_t stream,
            const Params& params, const char* op) {
  if (shared > kSharedUnasked) {
    // Never less than the most: another thread may launch the kernel between these two calls.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               largest_shared(kernel, op)),
          op, "shared memory");
  }
  Params copy = params;
  void* arguments[] = {&copy};
  check(cudaLaunchKernel(kernel, grid, dim3(threads), arguments, shared, stream), op, "launch");
}

}  // namespace dd2::cuda
