// Tensor-core instructions of csrc/include/dd2/mma.cuh on the CPU, with the fragment layouts of the
// PTX ISA; for kernels under cuda_shim.h. Stricter than the hardware where that is free: a copy to
// shared memory happens only when its thread waits for it. Products are summed as compute capability
// 8.0 does, which loses the most of those that the kernels are built for.
#pragma once

#include "cuda_shim.h"

namespace dd2_shim {

inline float half_to_float(unsigned short bits) {
  const int exponent = bits >> 10 & 31;
  const float fraction = static_cast<float>(bits & 1023);
  float value = exponent == 0    ? std::ldexp(fraction, -24)
                : exponent == 31 ? (fraction == 0 ? HUGE_VALF : std::nanf(""))
                                 : std::ldexp(fraction + 1024, exponent - 25);
  return bits & 0x8000 ? -value : value;
}

inline unsigned short nearest_half(float value) {
  const unsigned bits = bit_cast<unsigned>(value), sign = bits >> 16 & 0x8000;
  const float magnitude = std::fabs(value);
  if (magnitude == 0.0f) return static_cast<unsigned short>(sign);
  if (std::isnan(value)) return 0x7fff;
  if (magnitude >= 65520.0f) return static_cast<unsigned short>(sign | 0x7c00);
  int exponent;
  std::frexp(magnitude, &exponent);  // magnitude < 2^exponent
  const int unit = std::max(exponent - 11, -24);
  const auto steps = static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, -unit)));
  // A carry into the next exponent is what the encoding wants.
  const unsigned code = unit == -24 ? steps : (static_cast<unsigned>(unit + 24) << 10) + steps;
  return static_cast<unsigned short>(sign | code);
}

inline unsigned pack_halves(float low, float high) {
  return nearest_half(low) | static_cast<unsigned>(nearest_half(high)) << 16;
}

inline float exp2_flushed(float x) {
  const float value = std::exp2(x);
  return value < 1.17549435e-38f ? 0.0f : value;
}

inline unsigned char* shared_address(const void* shared) {
  return static_cast<unsigned char*>(const_cast<void*>(shared));
}

inline void count_in_shared(unsigned char* words, unsigned index, float value, float floor) {
  if (value >= floor) atomicAdd(reinterpret_cast<unsigned*>(words + index * 4), 1u);
}

template <int kHigh>
void weigh_in_shared(unsigned char* words, unsigned index, unsigned weight, float value,
                     float floor) {
  if (!(value >= floor)) return;
  unsigned char* word = words + index * 4;
  const unsigned before = atomicAdd(reinterpret_cast<unsigned*>(word), weight);
  if (before + weight < weight) atomicAdd(reinterpret_cast<unsigned*>(word + kHigh), 1u);
}

// What each lane of a warp gives to an instruction, for the others to read.
template <typename T>
const T* exchange(const T& mine) {
  static T given[1024 / warpSize][warpSize];
  T* warp = given[machine.current / warpSize];
  collective(Wait::kSyncwarp, ~0u, 0, -1);  // the last instruction's readers are done
  warp[lane_index()] = mine;
  collective(Wait::kSyncwarp, ~0u, 0, -1);
  return warp;
}

inline float cut_to_float(double value) {
  const float nearest = static_cast<float>(value);
  return std::fabs(nearest) > std::fabs(value) ? std::nextafter(nearest, 0.0f) : nearest;
}

// A number and the exponent that the adder takes it to have.
struct Term {
  double value;
  int exponent;
};

inline Term term_of(double value, int smallest_exponent) {
  if (value == 0.0) return {value, -200};  // below all others
  int exponent;
  std::frexp(value, &exponent);
  return {value, std::max(exponent - 1, smallest_exponent)};
}

// d + sum a b over eight products, as tensor cores of compute capability 8.0 add: each term is cut
// off at 2^-24 of the largest one's power of two, their sum to the 24 bits of a float. 9.0 and 10.0
// cut at 2^-25 and take sixteen products at once. Source: Xie et al., MMA-Sim (arXiv 2511.10909).
inline float add_products(float d, const Term* const (&a)[8], const Term* const (&b)[8]) {
  const Term first = term_of(d, -126);
  int largest = first.exponent;
  for (int k = 0; k < 8; ++k) largest = std::max(largest, a[k]->exponent + b[k]->exponent);
  const double scale = std::ldexp(1.0, 24 - largest);
  double sum = std::trunc(first.value * scale);
  for (int k = 0; k < 8; ++k) sum += std::trunc(a[k]->value * b[k]->value * scale);
  return cut_to_float(sum / scale);
}

struct MmaInputs {
  Term a[4][2];
  Term b[2][2];
};

// Halves of a register.
inline void widen(Term (&out)[2], unsigned pair) {
  out[0] = term_of(half_to_float(static_cast<unsigned short>(pair)), -14);
  out[1] = term_of(half_to_float(static_cast<unsigned short>(pair >> 16)), -14);
}

inline void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  MmaInputs mine;
  for (int i = 0; i < 4; ++i) widen(mine.a[i], a[i]);
  widen(mine.b[0], b0);
  widen(mine.b[1], b1);
  const MmaInputs* warp = exchange(mine);
  const int group = lane_index() / 4, quad = lane_index() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = i / 2, column = 2 * quad + i % 2;
    for (int half = 0; half < 2; ++half) {  // k = 8 half to 8 half + 7
      const Term *a[8], *b[8];
      for (int k = 0; k < 8; ++k) {
        a[k] = &warp[4 * group + k / 2].a[row + 2 * half][k % 2];
        b[k] = &warp[4 * column + k / 2].b[half][k % 2];
      }
      d[i] = add_products(d[i], a, b);
    }
  }
}

using MatrixRow = unsigned short[8];

inline const MatrixRow* matrix_row(const unsigned char* address) {
  if (reinterpret_cast<std::uintptr_t>(address) % 16 != 0) {
    throw std::runtime_error("a matrix row is not aligned to 16 bytes");
  }
  return reinterpret_cast<const MatrixRow*>(address);
}

inline void load_matrices(unsigned (&r)[4], const unsigned char* row) {
  const auto* rows = exchange(matrix_row(row));
  const int group = lane_index() / 4, quad = lane_index() % 4;
  for (int i = 0; i < 4; ++i) {
    const MatrixRow& from = *rows[8 * i + group];
    r[i] = from[2 * quad] | static_cast<unsigned>(from[2 * quad + 1]) << 16;
  }
}

inline void load_matrices_transposed(unsigned (&r)[4], const unsigned char* row) {
  const auto* rows = exchange(matrix_row(row));
  const int group = lane_index() / 4, quad = lane_index() % 4;
  for (int i = 0; i < 4; ++i) {
    r[i] = (*rows[8 * i + 2 * quad])[group] |
           static_cast<unsigned>((*rows[8 * i + 2 * quad + 1])[group]) << 16;
  }
}

struct PendingCopy {
  unsigned char* target;
  const void* source;
};
inline std::vector<PendingCopy> pending_copies[1024];  // of each thread

inline void copy_to_shared(unsigned char* target, const void* source) {
  pending_copies[machine.current].push_back({target, source});
}

inline void wait_for_copies() {
  auto& copies = pending_copies[machine.current];
  for (const PendingCopy& copy : copies) std::memcpy(copy.target, copy.source, 16);
  copies.clear();
}

}  // namespace dd2_shim
