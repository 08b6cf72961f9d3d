// What the launchers of csrc/cuda ask of the CUDA runtime; what they launch runs on the CPU.
#pragma once

#include <cstddef>
#include <map>

#include "tensor_shim.h"

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaFuncAttributes { std::size_t sharedSizeBytes; };

namespace fake_runtime {

constexpr std::size_t kUnasked = 48 * 1024;  // bytes of shared memory
constexpr std::size_t kStatic = 1500;        // of every kernel

struct Device {
  std::size_t shared_limit;  // bytes a block can have
  int processors;
  std::map<const void*, std::size_t> allowed;  // dynamic shared memory, where a launcher set it
};
inline Device device;

}  // namespace fake_runtime

inline const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaSuccess ? "no error" : "invalid argument";
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const fake_runtime::Device& device = fake_runtime::device;
  *value = attribute == cudaDevAttrMultiProcessorCount ? device.processors
                                                       : static_cast<int>(device.shared_limit);
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  attributes->sharedSizeBytes = fake_runtime::kStatic;
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int value) {
  // Less, and the launch of another thread would exceed it.
  const auto most = static_cast<int>(fake_runtime::device.shared_limit - fake_runtime::kStatic);
  if (value != most) return cudaErrorInvalidValue;
  fake_runtime::device.allowed[reinterpret_cast<const void*>(kernel)] = value;
  return cudaSuccess;
}

template <typename Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params), dim3 grid, dim3 block, void** arguments,
                             std::size_t shared, cudaStream_t) {
  const auto& allowed = fake_runtime::device.allowed;
  const auto found = allowed.find(reinterpret_cast<const void*>(kernel));
  const std::size_t most =
      found != allowed.end() ? found->second : fake_runtime::kUnasked - fake_runtime::kStatic;
  if (shared > most) return cudaErrorInvalidValue;
  dd2_shim::launch(kernel, grid, block, shared, *static_cast<const Params*>(arguments[0]));
  return cudaSuccess;
}
