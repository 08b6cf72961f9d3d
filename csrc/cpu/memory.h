// Aligned scratch memory. Everything is of types of DD2_ISA, so that the builds for different
// instruction sets cannot share (and so mix up) an instantiation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "simd.h"

namespace dd2::cpu::DD2_ISA {

struct FreeDeleter {
  void operator()(void* pointer) const { std::free(pointer); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], FreeDeleter>;

template <typename T>
Buffer<T> allocate(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count > 0 ? count : 1) * sizeof(T) + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(memory));
}

DD2_INLINE int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// The scratch memory of each thread of a parallel region, at most one a task. It is allocated before
// the region: an exception that left one would end the process.
template <typename T>
class PerThread {
 public:
  template <typename... Arguments>
  PerThread(int num_threads, int64_t tasks, const Arguments&... arguments) {
    const int64_t count = tasks < num_threads ? tasks : num_threads;
    scratch_.reserve(static_cast<size_t>(count > 1 ? count : 1));
    do scratch_.emplace_back(arguments...);
    while (static_cast<int64_t>(scratch_.size()) < count);
  }

  int threads() const { return static_cast<int>(scratch_.size()); }

  // The calling thread's, in a region of threads().
  T& mine() {
#if defined(_OPENMP)
    return scratch_[static_cast<size_t>(omp_get_thread_num())];
#else
    return scratch_[0];
#endif
  }

 private:
  std::vector<T> scratch_;
};

}  // namespace dd2::cpu::DD2_ISA
