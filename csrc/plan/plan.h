// How the GPU kernels of an operator are launched: written here once, as plain C++ that knows nothing
// of CUDA, for the launchers of csrc/cuda and, through the extension, for those of CuPy.
#pragma once

#include <string>
#include <vector>

#include "dd2/teacher_rows.h"
#include "layout.h"
#include "operators.h"

namespace dd2 {

// Of shared memory, the most bytes that a kernel has of its own; a test reads off what they have.
constexpr long long kOwnShared = 16 * 1024;

struct Device {
  long long processors;  // multiprocessors
  long long shared;      // bytes of shared memory that a block can have

  // Whether a block can have `bytes` of dynamic shared memory beside the kernel's own.
  bool holds(long long bytes) const { return kOwnShared + bytes <= shared; }
};

// Bytes of shared memory that a row of logits takes.
inline long long row_bytes(const TeacherRows& teacher) {
  return teacher.staged_floats() * static_cast<long long>(sizeof(float));
}

// An argument of a kernel's template.
struct Argument {
  enum class Kind { kNone, kLogitType, kInt, kBool } kind = Kind::kNone;
  int value = 0;

  Argument() = default;
  Argument(LogitType type) : kind(Kind::kLogitType), value(static_cast<int>(type)) {}
  Argument(int number) : kind(Kind::kInt), value(number) {}
  Argument(bool flag) : kind(Kind::kBool), value(flag) {}
};

struct Launch {
  const char* kernel;     // X_kernel or X_fwd_kernel of dd2/X.cuh
  Argument arguments[4];  // of its template
  long long grid[2];
  int threads;       // of a block
  long long shared;  // bytes of dynamic shared memory
};

// As C++ writes the kernel inside namespace dd2.
std::string name_of(const Launch& launch);

struct Plan {
  std::vector<Launch> launches;  // in this order
  long long workspace = 0;       // bytes that params.workspace had better point to
};

// Of every operator: its plan where it has GPU kernels, and where the fields of its arguments lie;
// in plan/<name>.cpp.
#define DD2_CPU_OPERATOR(name, Params) Layout layout_##name();
#define DD2_OPERATOR(name, Params)                              \
  Plan plan_##name(const Params& params, const Device& device); \
  Layout layout_##name();
#define DD2_CUDA_OPERATOR DD2_OPERATOR
#include "operators.def"
#undef DD2_OPERATOR

// Defines the latter.
#define DD2_LAYOUT(name, Params) \
  Layout layout_##name() { return layout_of<Params>(); }

}  // namespace dd2
