// Kernels by their C++ names: run on the CPU, or recognised in what a launcher of csrc/cuda asks for.
#pragma once

#include "cuda_shim.h"

#include <cuda_runtime.h>

#define DD2_KERNEL(...) {#__VA_ARGS__, __VA_ARGS__}

template <typename Params>
struct NamedKernel {
  const char* name;
  void (*kernel)(Params);
};

// As in native/structs.py.
struct Launched {
  const char* kernel;  // null where nothing was launched
  unsigned grid[3];
  unsigned block[3];
  std::size_t shared;
  std::size_t stream;
};

inline std::string message;

// Null, or the error.
template <typename Function>
const char* error_of(const Function& function) {
  try {
    function();
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}

template <typename Params, std::size_t kCount>
const char* run_named(const NamedKernel<Params> (&kernels)[kCount], const char* name,
                      const Params& params, unsigned grid_x, unsigned grid_y, unsigned threads,
                      std::size_t shared, bool reverse_order) {
  return error_of([&] {
    dd2_shim::reverse_order = reverse_order;
    for (const NamedKernel<Params>& named : kernels) {
      if (std::string(named.name) != name) continue;
      return dd2_shim::launch(named.kernel, dim3(grid_x, grid_y), dim3(threads), shared, params);
    }
    throw std::invalid_argument(std::string("no kernel ") + name);
  });
}

template <typename Params, std::size_t kCount>
const char* record_launch(const NamedKernel<Params> (&kernels)[kCount],
                          void (*launcher)(const Params&, void*), const Params& params,
                          std::size_t stream, std::size_t limit, std::size_t static_shared,
                          int processors, Launched* out) {
  return error_of([&] {
    fake_runtime::device = {limit, static_shared, processors};
    fake_runtime::launched = {};
    launcher(params, reinterpret_cast<void*>(stream));
    const fake_runtime::Launch& l = fake_runtime::launched;
    if (l.count > 1) throw std::logic_error("more than one launch");
    if (l.count == 1 && std::memcmp(l.argument.data(), &params, sizeof(params)) != 0) {
      throw std::logic_error("the kernel's argument is not what the launcher was given");
    }
    const std::size_t asked = static_cast<std::size_t>(l.dynamic_limit);
    if (asked != 0 && asked != limit - static_shared) {
      throw std::logic_error("a limit of shared memory that another thread's launch may exceed");
    }
    if (l.shared + static_shared > 48 * 1024 && asked == 0) {
      throw std::logic_error("more shared memory than a kernel gets without asking");
    }
    *out = {nullptr, {l.grid.x, l.grid.y, l.grid.z}, {l.block.x, l.block.y, l.block.z}, l.shared,
            reinterpret_cast<std::size_t>(l.stream)};
    for (const NamedKernel<Params>& named : kernels) {
      if (reinterpret_cast<const void*>(named.kernel) == l.kernel) out->kernel = named.name;
    }
    if (l.count == 1 && out->kernel == nullptr) throw std::logic_error("an unnamed kernel");
  });
}

// Exports `op`, which runs a kernel of the table, and `op`_launch, which records the launcher's.
#define DD2_EXPORT(op, Params, kernels)                                                            \
  extern "C" const char* op(const char* name, const Params* params, unsigned grid_x,               \
                            unsigned grid_y, unsigned threads, std::size_t shared,                 \
                            bool reverse_order) {                                                  \
    return run_named(kernels, name, *params, grid_x, grid_y, threads, shared, reverse_order);      \
  }                                                                                                \
  extern "C" const char* op##_launch(const Params* params, std::size_t stream, std::size_t limit,  \
                                     std::size_t static_shared, int processors,                    \
                                     Launched* out) {                                              \
    return record_launch(kernels, &dd2::cuda::launch_##op, *params, stream, limit, static_shared,  \
                         processors, out);                                                         \
  }
