// What the launchers of csrc/cuda ask of the CUDA runtime, recorded and, if wanted, run on the CPU.
// After cuda_shim.h.
#pragma once

#include <cstddef>
#include <vector>

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaFuncAttributes { std::size_t sharedSizeBytes; };

namespace fake_runtime {

struct Device {
  std::size_t shared_limit;   // bytes a block can have
  std::size_t static_shared;  // bytes of every kernel
  int processors = 1;
  bool runs = false;  // what is launched
};
inline Device device;

struct Launch {
  const void* kernel;
  dim3 grid, block;
  std::size_t shared;
  int dynamic_limit;  // the kernel's attribute, or 0 where nothing set it
  cudaStream_t stream;
  int count;  // launches since the record was cleared
  std::vector<unsigned char> argument;
};
inline Launch launched;

}  // namespace fake_runtime

inline const char* cudaGetErrorString(cudaError_t) { return "an error"; }

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
  attributes->sharedSizeBytes = fake_runtime::device.static_shared;
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int value) {
  fake_runtime::launched.dynamic_limit = value;
  return cudaSuccess;
}

template <typename Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params), dim3 grid, dim3 block, void** arguments,
                             std::size_t shared, cudaStream_t stream) {
  fake_runtime::Launch& launched = fake_runtime::launched;
  const auto* bytes = static_cast<const unsigned char*>(arguments[0]);
  launched = {reinterpret_cast<const void*>(kernel), grid, block, shared, launched.dynamic_limit,
              stream, launched.count + 1, {bytes, bytes + sizeof(Params)}};
  if (fake_runtime::device.runs) {
    dd2_shim::launch(kernel, grid, block, shared, *static_cast<const Params*>(arguments[0]));
  }
  return cudaSuccess;
}
