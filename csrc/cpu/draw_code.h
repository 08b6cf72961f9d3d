// One categorical draw from a row of guided logits: the filtered row is compressed to its kept codes,
// whose masses are summed in code order up to the row's uniform share of the total.
#pragma once

#include "row.h"
#include "simd.h"

namespace dd2::cpu::DD2_ISA {
namespace {

constexpr int kBlock = 16 * kLanes;  // codes summed in single precision; blocks in double

struct DrawBuffers {
  RowBuffers rows;  // of one row
  Buffer<double> ends;

  explicit DrawBuffers(int64_t padded)
      : rows(1, padded), ends(allocate<double>(padded / kBlock + 1)) {}
};

// The first kept code whose running mass exceeds uniform * total mass. `ends` has the running mass
// at the end of each block.
DD2_INLINE int64_t draw_code(const Row& row, float* mass, double* ends, double uniform) {
  const int64_t padded = round_up(row.kept, kLanes);
  double total = 0.0;
  for (int64_t i = 0; i < padded; i += kBlock) {
    const int64_t size = padded - i < kBlock ? padded - i : kBlock;
    total += exponentiate(row.values + i, mass + i, size, row.largest);
    ends[i / kBlock] = total;
  }
  const double target = uniform * total;  // below total: uniform is at most 1 - 2^-53
  int64_t block = 0;
  while (ends[block] <= target) ++block;
  double sum = block > 0 ? ends[block - 1] : 0.0;
  const int64_t first = block * kBlock;
  int64_t chosen = first;
  for (int64_t i = first; i < row.kept && i < first + kBlock && sum <= target; ++i) {
    if (mass[i] > 0.0f) chosen = i;
    sum += mass[i];
  }
  return row.indices[chosen];
}

}  // namespace
}  // namespace dd2::cpu::DD2_ISA
