// Runs the CUDA kernels of csrc/include/dd2 on the CPU: a fiber for each thread of a block, blocks
// in sequence. A fiber runs until it waits at a barrier or a warp collective, so that a run is
// deterministic and finds logic errors, not races (tests/compiled does); a kernel that spins on memory never ends.
// Stricter than the hardware: a barrier, or a collective's mask, that counts an exited thread is a
// deadlock. Static __shared__ memory keeps its values between blocks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fiber.h"

#define DD2_HOST_SHIM 1
#define DD2_DYNAMIC_SHARED(type, name) \
  type* name = reinterpret_cast<type*>(dd2_shim::machine.shared.data())
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static

struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

constexpr int warpSize = 32;
inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim, gridDim;

namespace dd2_shim {

enum class Wait {
  kReady, kExited, kBarrier, kSyncwarp, kShfl, kXor, kUp, kDown, kBallot, kAny, kAll
};
constexpr const char* kWaitNames[] = {
    "ready", "exited", "__syncthreads", "__syncwarp", "__shfl_sync", "__shfl_xor_sync",
    "__shfl_up_sync", "__shfl_down_sync", "__ballot_sync", "__any_sync", "__all_sync"};

struct Fiber {
  Context context;
  Wait wait;
  unsigned mask;        // of the collective it waits at
  int source;           // lane to read, or -1 to collect the votes
  std::uint64_t value;  // given to the collective, then its result
};

struct alignas(128) SharedLine { unsigned char bytes[128]; };

struct Machine {
  Context scheduler;
  std::vector<Fiber> fibers;
  std::vector<SharedLine> shared;
  std::function<void()> body;
  std::exception_ptr error;
  Stacks stacks;
  int threads = 0;
  int current = 0;
  int at_barrier = 0;
};
inline Machine machine;

// Runs each round from the last thread to the first: a missing barrier that one order hides, the
// other may show.
inline bool reverse_order = false;

inline std::string triple(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

inline uint3 thread_index(int thread) {
  const unsigned i = static_cast<unsigned>(thread);
  return {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
}

inline void yield() {
  switch_context(machine.fibers[machine.current].context, machine.scheduler);
}

inline void fiber_main() {
  try {
    machine.body();
  } catch (...) {
    machine.error = std::current_exception();
  }
  machine.fibers[machine.current].wait = Wait::kExited;
  machine.fibers[machine.current].mask = 0;
  yield();
}

inline void barrier() {
  Fiber& self = machine.fibers[machine.current];
  self.wait = Wait::kBarrier;
  self.mask = 0;
  if (++machine.at_barrier < machine.threads) return yield();
  machine.at_barrier = 0;
  for (int i = 0; i < machine.threads; ++i) machine.fibers[i].wait = Wait::kReady;
}

// Returns the value of lane `source`, or the lanes whose value is not zero where source < 0.
inline std::uint64_t collective(Wait kind, unsigned mask, std::uint64_t value, int source) {
  const int lane = machine.current % warpSize;
  Fiber* warp = &machine.fibers[machine.current - lane];
  const int lanes = std::min(warpSize, machine.threads - (machine.current - lane));
  if (!(mask >> lane & 1)) {
    throw std::runtime_error("thread " + triple(threadIdx) + " is not in the mask of its " +
                             kWaitNames[static_cast<int>(kind)]);
  }
  Fiber& self = warp[lane];
  self.wait = kind;
  self.mask = mask;
  self.source = source;
  self.value = value;
  // Downwards, since the highest lane usually comes last.
  for (int i = lanes - 1; i >= 0; --i) {
    if ((mask >> i & 1) && (warp[i].wait != kind || warp[i].mask != mask)) {
      yield();
      return self.value;
    }
  }
  unsigned votes = 0;
  std::uint64_t values[warpSize];
  std::fill(values, values + warpSize, ~std::uint64_t{0});  // of a lane outside the mask: NaN
  for (int i = 0; i < lanes; ++i) {
    if (!(mask >> i & 1)) continue;
    values[i] = warp[i].value;
    votes |= static_cast<unsigned>(warp[i].value != 0) << i;
  }
  for (int i = 0; i < lanes; ++i) {
    if (!(mask >> i & 1)) continue;
    warp[i].value = warp[i].source < 0 ? votes : values[warp[i].source];
    warp[i].wait = Wait::kReady;
  }
  return self.value;
}

inline int lane_index() { return machine.current % warpSize; }

// A source outside the warp leaves the lane its own value, as __shfl_up_sync wants.
template <typename T>
T shuffle(Wait kind, unsigned mask, T value, int source) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles 4 or 8 bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const bool inside = source >= 0 && source < warpSize;
  bits = collective(kind, mask, bits, inside ? source : lane_index());
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline std::string deadlock() {
  std::map<std::pair<Wait, unsigned>, std::vector<int>> groups;
  for (int i = 0; i < machine.threads; ++i) {
    groups[{machine.fibers[i].wait, machine.fibers[i].mask}].push_back(i);
  }
  std::string text = "deadlock in block " + triple(blockIdx) + ":";
  for (const auto& [key, members] : groups) {
    const auto [wait, mask] = key;
    char with_mask[32] = "";
    if (wait > Wait::kBarrier) {
      std::snprintf(with_mask, sizeof(with_mask), " with mask 0x%08x", mask);
    }
    text += "\n  thread " + triple(thread_index(members[0])) + " and " +
            std::to_string(members.size() - 1) + " more: " +
            (wait == Wait::kExited ? "" : "wait at ") + kWaitNames[static_cast<int>(wait)] +
            with_mask;
  }
  return text;
}

inline void run_block(std::size_t shared_bytes) {
  std::memset(machine.shared.data(), 0xff, machine.shared.size() * sizeof(SharedLine));
  machine.at_barrier = 0;
  for (int i = 0; i < machine.threads; ++i) {
    machine.fibers[i].wait = Wait::kReady;
    machine.stacks.start(i, machine.fibers[i].context, fiber_main);
  }
  for (int left = machine.threads; left > 0;) {
    bool stuck = true;
    for (int turn = 0; turn < machine.threads; ++turn) {
      const int i = reverse_order ? machine.threads - 1 - turn : turn;
      if (machine.fibers[i].wait != Wait::kReady) continue;
      stuck = false;
      machine.current = i;
      threadIdx = thread_index(i);
      switch_context(machine.scheduler, machine.fibers[i].context);
      if (machine.error) std::rethrow_exception(std::exchange(machine.error, nullptr));
      left -= machine.fibers[i].wait == Wait::kExited;
    }
    if (stuck) throw std::runtime_error(deadlock());
  }
  const auto* shared = reinterpret_cast<const unsigned char*>(machine.shared.data());
  const auto poisoned = [](unsigned char byte) { return byte == 0xff; };
  const auto* end = shared + machine.shared.size() * sizeof(SharedLine);
  if (!std::all_of(shared + shared_bytes, end, poisoned)) {
    throw std::runtime_error("block " + triple(blockIdx) + " wrote past its dynamic shared memory");
  }
}

// Runs kernel<<<grid, block, shared_bytes>>>(args...); throws std::invalid_argument for a launch
// that no device accepts and std::runtime_error for a deadlock.
template <typename Kernel, typename... Args>
void launch(Kernel kernel, dim3 grid, dim3 block, std::size_t shared_bytes, Args... args) {
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64 || grid.x == 0 || grid.y == 0 ||
      grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535 ||
      shared_bytes > 227 * 1024) {
    throw std::invalid_argument("no device accepts this launch configuration");
  }
  machine.body = [&] { kernel(args...); };
  machine.threads = static_cast<int>(threads);
  machine.fibers.resize(threads);
  machine.stacks.reserve(machine.threads);
  // A line more than asked for shows writes past the end.
  machine.shared.resize(shared_bytes / sizeof(SharedLine) + 2);
  gridDim = grid;
  blockDim = block;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(shared_bytes);
    }
  }
}

template <typename T>
struct Identity { using type = T; };  // keeps an argument out of template deduction

template <typename To, typename From>
To bit_cast(From from) {
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename T, typename... Allowed>
constexpr bool is_one_of = (std::is_same<T, Allowed>::value || ...);

}  // namespace dd2_shim

inline void __syncthreads() { dd2_shim::barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  dd2_shim::collective(dd2_shim::Wait::kSyncwarp, mask, 0, -1);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  const int within = source & (width - 1), first = dd2_shim::lane_index() & -width;
  return dd2_shim::shuffle(dd2_shim::Wait::kShfl, mask, value, first + within);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  return dd2_shim::shuffle(dd2_shim::Wait::kXor, mask, value, dd2_shim::lane_index() ^ lane_mask);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  const int source = dd2_shim::lane_index() - static_cast<int>(delta);
  return dd2_shim::shuffle(dd2_shim::Wait::kUp, mask, value, source);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  const int source = dd2_shim::lane_index() + static_cast<int>(delta);
  return dd2_shim::shuffle(dd2_shim::Wait::kDown, mask, value, source);
}

inline unsigned __ballot_sync(unsigned mask, int vote) {
  return static_cast<unsigned>(
      dd2_shim::collective(dd2_shim::Wait::kBallot, mask, vote != 0, -1));
}
inline int __any_sync(unsigned mask, int vote) {
  return dd2_shim::collective(dd2_shim::Wait::kAny, mask, vote != 0, -1) != 0;
}
inline int __all_sync(unsigned mask, int vote) {
  return dd2_shim::collective(dd2_shim::Wait::kAll, mask, vote == 0, -1) == 0;
}

inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return shift % 32 == 0 ? high : high << shift % 32 | low >> (32 - shift % 32);
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }

namespace dd2_shim {

// Replaces *address by what combine makes of it; atomics of two threads are no race.
template <typename T, typename Combine>
T atomic(T* address, const Combine& combine) {
  const T old = *address;
  *address = combine(old);
  return old;
}

}  // namespace dd2_shim

template <typename T>
T atomicAdd(T* address, typename dd2_shim::Identity<T>::type value) {
  static_assert(dd2_shim::is_one_of<T, int, unsigned, unsigned long long, float>,
                "CUDA has no such atomicAdd");
  return dd2_shim::atomic(address, [=](T old) { return old + value; });
}
template <typename T>
T atomicMax(T* address, typename dd2_shim::Identity<T>::type value) {
  static_assert(dd2_shim::is_one_of<T, int, unsigned, long long, unsigned long long>,
                "CUDA has no such atomicMax");
  return dd2_shim::atomic(address, [=](T old) { return std::max(old, value); });
}
template <typename T>
T atomicMin(T* address, typename dd2_shim::Identity<T>::type value) {
  static_assert(dd2_shim::is_one_of<T, int, unsigned, long long, unsigned long long>,
                "CUDA has no such atomicMin");
  return dd2_shim::atomic(address, [=](T old) { return std::min(old, value); });
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}

inline int __float_as_int(float x) { return dd2_shim::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return dd2_shim::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return dd2_shim::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return dd2_shim::bit_cast<float>(x); }
inline unsigned __float2uint_rn(float x) { return static_cast<unsigned>(std::nearbyint(x)); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
