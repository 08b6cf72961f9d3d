// Kernels that exercise cuda_shim.h; each entry returns 0, or 1 with the message in last_error().
#include "tensor_shim.h"

namespace {

constexpr unsigned kFull = 0xffffffffu;
std::string message;

template <typename T>
__device__ T warp_sum(T value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kFull, value, offset);
  return value;
}

template <typename T>
__global__ void __launch_bounds__(1024)
block_sum_kernel(T* __restrict__ out, const T* __restrict__ in, int per_block) {
  __shared__ T partial[32];
  const int lane = threadIdx.x % warpSize, warp = threadIdx.x / warpSize;
  T sum = 0;
  for (int i = threadIdx.x; i < per_block; i += blockDim.x) {
    sum += __ldg(in + static_cast<long long>(blockIdx.x) * per_block + i);
  }
  sum = warp_sum(sum);
  if (lane == 0) partial[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    sum = warp_sum(lane < static_cast<int>(blockDim.x / warpSize) ? partial[lane] : T{0});
    if (lane == 0) out[blockIdx.x] = sum;
  }
  __syncthreads();  // partial is the next block's
}

// out[i] = how many of keep[0..i) are set, one block.
__global__ void scan_kernel(int* out, const int* keep) {
  __shared__ int totals[32];
  const int lane = threadIdx.x % warpSize, warp = threadIdx.x / warpSize;
  const unsigned votes = __ballot_sync(kFull, keep[threadIdx.x]);
  if (lane == 0) totals[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1));
  for (int i = 0; i < warp; ++i) before += totals[i];
  out[threadIdx.x] = before;
}

__global__ void count_kernel(int* count, unsigned long long* sum, float* real, int* largest) {
  const int i = static_cast<int>(
      ((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x * blockDim.y +
      threadIdx.y * blockDim.x + threadIdx.x);
  atomicAdd(count, 1);
  atomicAdd(sum, i);
  atomicAdd(real, 0.5f);
  atomicMax(largest, i);
}

// Reverses `count` floats through dynamic shared memory, which must start as NaN.
__global__ void reverse_kernel(float* data, int* stale, int count) {
  DD2_DYNAMIC_SHARED(float, buffer);
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    if (!std::isnan(buffer[i])) atomicAdd(stale, 1);
    buffer[i] = data[blockIdx.x * count + i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    data[blockIdx.x * count + i] = buffer[count - 1 - i];
  }
}

__global__ void overrun_kernel() {
  DD2_DYNAMIC_SHARED(float, buffer);
  buffer[threadIdx.x] = 0.0f;
}

// One row of 32 for each collective.
__global__ void collectives_kernel(long long* out) {
  const int lane = threadIdx.x;
  const long long wide = (1ll << 40) + lane;
  out[0 * 32 + lane] = __shfl_sync(kFull, wide, (lane + 5) % 32);
  out[1 * 32 + lane] = __shfl_up_sync(kFull, lane, 3);
  out[2 * 32 + lane] = __shfl_down_sync(kFull, static_cast<unsigned>(lane), 3);
  out[3 * 32 + lane] = static_cast<long long>(__shfl_xor_sync(kFull, 0.25f * lane, 9) * 4.0f);
  out[4 * 32 + lane] = __any_sync(kFull, lane == 31) + 2 * __any_sync(kFull, 0);
  out[5 * 32 + lane] = __all_sync(kFull, 7) + 2 * __all_sync(kFull, lane != 4);
  // Halves that diverge, each with its own mask and number of collectives.
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  unsigned votes = 0;
  for (int i = 0; i < (lane < 16 ? 1 : 3); ++i) votes = __ballot_sync(half, lane % 2);
  __syncwarp();
  out[6 * 32 + lane] = votes;
  out[7 * 32 + lane] = __ffs(1 << lane) * 100 + __clz(1 << lane);
}

__device__ __attribute__((noinline)) int deep(volatile char* above, int depth) {
  volatile char frame[4096];
  frame[0] = above ? static_cast<char>(above[0] + 1) : 0;
  __syncthreads();
  return depth == 0 ? frame[0] : deep(frame, depth - 1);
}
__global__ void deep_stack_kernel(int* out) { out[threadIdx.x] = deep(nullptr, 15); }

// Lacks a barrier, which only the reverse order shows.
__global__ void racing_kernel(float* out) {
  DD2_DYNAMIC_SHARED(float, buffer);
  buffer[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = threadIdx.x == 0 ? 0.0f : buffer[threadIdx.x - 1];
}

__global__ void exited_at_barrier_kernel() {
  if (threadIdx.x < 32) __syncthreads();
}
__global__ void mixed_waits_kernel() {
  if (threadIdx.x == 7) {
    __syncthreads();
  } else {
    __shfl_xor_sync(kFull, 1, 1);
  }
}
__global__ void outside_mask_kernel() { __ballot_sync(0xfffffffeu, 1); }

// out = A B of halves, A [16, 16], B given as its transpose [8, 16] or as it is [16, 8]; the
// fragments of A and out are placed as the PTX ISA says, those of B come from matrix loads.
__global__ void product_kernel(float* out, const unsigned short* a, const unsigned short* b,
                               bool transposed) {
  DD2_DYNAMIC_SHARED(unsigned short, shared);
  const int lane = threadIdx.x, group = lane / 4, quad = lane % 4;
  for (int i = 0; i < 4; ++i) {
    dd2_shim::copy_to_shared(reinterpret_cast<unsigned char*>(shared + 8 * (lane % 16)),
                             b + 8 * (lane % 16));
  }
  dd2_shim::wait_for_copies();
  __syncwarp();
  unsigned left[4], right[4];
  for (int i = 0; i < 4; ++i) {
    const int row = group + (i % 2 ? 8 : 0), column = 2 * quad + (i < 2 ? 0 : 8);
    left[i] = a[16 * row + column] | static_cast<unsigned>(a[16 * row + column + 1]) << 16;
  }
  // Matrices 2 and 3 are not used, but must have rows.
  const int matrix = lane / 8 % 2, row = lane % 8;
  if (transposed) {
    const unsigned short* start = shared + 16 * row + 8 * matrix;
    dd2_shim::load_matrices(right, dd2_shim::shared_address(start));
  } else {
    const unsigned short* start = shared + 8 * (8 * matrix + row);
    dd2_shim::load_matrices_transposed(right, dd2_shim::shared_address(start));
  }
  float sum[4] = {};
  dd2_shim::multiply_add(sum, left, right[0], right[1]);
  for (int i = 0; i < 4; ++i) out[8 * (group + (i < 2 ? 0 : 8)) + 2 * quad + i % 2] = sum[i];
}

__global__ void not_waited_kernel(float* out, const float* in) {
  DD2_DYNAMIC_SHARED(float, shared);
  dd2_shim::copy_to_shared(reinterpret_cast<unsigned char*>(shared), in);
  out[0] = shared[0];
  dd2_shim::wait_for_copies();
  out[1] = shared[0];
}

template <typename Kernel, typename... Args>
int run(Kernel kernel, dim3 grid, dim3 block, std::size_t shared_bytes, Args... args) {
  try {
    dd2_shim::launch(kernel, grid, block, shared_bytes, args...);
    return 0;
  } catch (const std::exception& error) {
    message = error.what();
    return 1;
  }
}

}  // namespace

extern "C" {

const char* last_error() { return message.c_str(); }

int block_sum_float(float* out, const float* in, int blocks, int threads, int per_block) {
  return run(block_sum_kernel<float>, blocks, threads, 0, out, in, per_block);
}
int block_sum_int64(long long* out, const long long* in, int blocks, int threads, int per_block) {
  return run(block_sum_kernel<long long>, blocks, threads, 0, out, in, per_block);
}
int scan(int* out, const int* keep, int threads) {
  return run(scan_kernel, 1, threads, 0, out, keep);
}
int count(int* count, unsigned long long* sum, float* real, int* largest) {
  return run(count_kernel, dim3(3, 2, 2), dim3(16, 3), 0, count, sum, real, largest);
}
int reverse(float* data, int* stale, int blocks, int count) {
  return run(reverse_kernel, blocks, 64, count * sizeof(float), data, stale, count);
}
int overrun() { return run(overrun_kernel, 1, 33, 32 * sizeof(float)); }
int collectives(long long* out) { return run(collectives_kernel, 1, 32, 0, out); }
int deep_stack(int* out, int threads) { return run(deep_stack_kernel, 1, threads, 0, out); }
void set_reverse_order(int on) { dd2_shim::reverse_order = on != 0; }
int racing(float* out) { return run(racing_kernel, 1, 32, 32 * sizeof(float), out); }
int exited_at_barrier() { return run(exited_at_barrier_kernel, 2, 256, 0); }
int mixed_waits() { return run(mixed_waits_kernel, 1, 64, 0); }
int outside_mask() { return run(outside_mask_kernel, 1, 32, 0); }
int product(float* out, const unsigned short* a, const unsigned short* b, int transposed) {
  return run(product_kernel, 1, 32, 256, out, a, b, transposed != 0);
}
int not_waited(float* out, const float* in) { return run(not_waited_kernel, 1, 1, 16, out, in); }
float half_round_trip(float value) {
  return dd2_shim::half_to_float(dd2_shim::nearest_half(value));
}
int too_many_threads() { return run(overrun_kernel, 1, 1025, 0); }

}  // extern "C"
