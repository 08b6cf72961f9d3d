#include "check.h"
#include "launch.h"

namespace dd2::cuda {
namespace {

__global__ void probe_kernel() {}

}  // namespace

const char* unusable() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, probe_kernel);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

Device current_device() {
  return {device_attribute(cudaDevAttrMultiProcessorCount),
          device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
}

}  // namespace dd2::cuda
