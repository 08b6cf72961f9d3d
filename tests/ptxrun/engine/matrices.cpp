// Matrix fragments of a warp: loads, stores and products.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "engine.h"

namespace ptxrun {
namespace {

// ldmatrix {d...}, [a]: lane 8 n + r has the address of row r of matrix n; `size` matrices.
void load_matrix(Warp& w, const Inst& i, u32) {
  const int count = i.size;
  const bool transposed = i.round;
  u64 address[kLanes];
  u8* place[kLanes];
  addresses(w, i, i.o[count], address);
  u32 users = count == 4 ? kAll : (1u << 8 * count) - 1;
  resolve(w, i, users, address, 16, kRead, nullptr, place);
  for (int n = 0; n < count; ++n) {
    u32* d = w.row<u32>(i.o[n]);
    for (int l = 0; l < kLanes; ++l) {
      const int row = l / 4, pair = l % 4 * 2;
      u16 part[2];
      for (int k = 0; k < 2; ++k) {
        const int r = transposed ? pair + k : row, c = transposed ? row : pair + k;
        std::memcpy(&part[k], place[8 * n + r] + 2 * c, 2);
      }
      d[l] = part[0] | static_cast<u32>(part[1]) << 16;
    }
  }
}

// stmatrix [a], {s...}: the same the other way.
void store_matrix(Warp& w, const Inst& i, u32) {
  const int count = i.size;
  const bool transposed = i.round;
  u64 address[kLanes];
  u8* place[kLanes];
  u16 data[kLanes][8];
  addresses(w, i, i.o[count], address);
  for (int n = 0; n < count; ++n) {
    const u32* s = w.row<u32>(i.o[n]);
    for (int l = 0; l < kLanes; ++l)
      for (int k = 0; k < 2; ++k) {
        const int row = l / 4, column = l % 4 * 2 + k;
        (transposed ? data[8 * n + column][row] : data[8 * n + row][column]) =
            static_cast<u16>(s[l] >> 16 * k);
      }
  }
  const u32 users = count == 4 ? kAll : (1u << 8 * count) - 1;
  resolve(w, i, users, address, 16, kWrite, reinterpret_cast<u8*>(data), place);
  each(users, [&](int l) { std::memcpy(place[l], data[l], 16); });
}

struct Tf32 {
  u32 bits;
};
inline float to_float(Tf32 x) { return float_of(x.bits & 0xffffe000u); }
using ptxrun::to_float;

constexpr int kNothing = -200;  // the exponent of 0, below all others

inline int exponent_of(float x, int smallest) {
  if (x == 0) return kNothing;
  return std::max<int>((bits_of(x) >> 23 & 255) - 127, smallest);
}

// A row of the left factor, or a column of the right one, and the exponents that the adder takes
// the values to have.
template <typename T>
struct Line {
  static constexpr int kSmallest = std::is_same_v<T, f16> ? -14 : -126;
  float value[16];
  int exponent[16];

  void set(int k, float x) {
    value[k] = x;
    exponent[k] = exponent_of(x, kSmallest);
  }
};

float cut_to_float(double exact) {
  float y = static_cast<float>(exact);
  if (std::isinf(y) && std::isfinite(exact)) return std::copysign(3.40282347e38f, y);
  if (std::isfinite(y) && std::fabs(static_cast<double>(y)) > std::fabs(exact))
    y = float_of(bits_of(y) - 1);
  return y;
}

// d + sum a b as tensor cores add: some terms at once, each cut off at 2^-24 (compute capability
// 8.0) or 2^-25 (9.0 and newer) of the largest one's power of two, their sum to the 24 bits of a
// float. Source: Xie et al., MMA-Sim (arXiv 2511.10909).
template <typename T>
float add_products(const Launch& launch, float d, const Line<T>& a, const Line<T>& b, int count) {
  const bool old = launch.config.arch < 90;
  const int together = (old ? 16 : 32) / static_cast<int>(sizeof(T)), bits = old ? 24 : 25;
  for (int first = 0; first < count; first += together) {
    const int last = std::min(first + together, count);
    int largest = exponent_of(d, -126);
    for (int k = first; k < last; ++k) largest = std::max(largest, a.exponent[k] + b.exponent[k]);
    const double scale = std::ldexp(1.0, bits - largest);
    double sum = std::trunc(d * scale);
    for (int k = first; k < last; ++k)
      sum += std::trunc(static_cast<double>(a.value[k]) * b.value[k] * scale);
    d = cut_to_float(sum / scale);
  }
  return d;
}

// Fragments of 16 x k (A), k x 8 (B) and 16 x 8 (C, D): lane = 4 group + thread of the group.
template <typename T>
float element(Warp& w, s32 offset, int lane, int part) {
  T x;
  std::memcpy(&x, reinterpret_cast<u8*>(w.row<u32>(offset) + lane) + part * sizeof(T), sizeof(T));
  return to_float(x);
}

// A 16-bit A fragment has registers (row, k): (g, 0..7), (g + 8, 0..7), (g, 8..15), (g + 8, 8..15).
template <typename T, int kK>
void read_a(Warp& w, const s32* a, Line<T> (&A)[16]) {
  constexpr int kPack = 4 / sizeof(T), kStep = 4 * kPack;  // columns of one register over a group
  for (int l = 0; l < kLanes; ++l)
    for (int n = 0; n < 2 * (kK / kStep); ++n)
      for (int e = 0; e < kPack; ++e)
        A[l / 4 + 8 * (n & 1)].set(n / 2 * kStep + l % 4 * kPack + e, element<T>(w, a[n], l, e));
}

// mma d{4}, a, b, c{4}
template <typename T, int kK, typename C>
void multiply(Warp& w, const Inst& i, u32) {
  constexpr int kPack = 4 / sizeof(T), kStep = 4 * kPack, kA = 2 * (kK / kStep), kB = kK / kStep;
  constexpr int kC = std::is_same_v<C, float> ? 4 : 2;
  Line<T> A[16], B[8];
  const s32 *a = i.o + kC, *b = a + kA, *c = b + kB;
  read_a<T, kK>(w, a, A);
  for (int l = 0; l < kLanes; ++l)
    for (int n = 0; n < kB; ++n)
      for (int e = 0; e < kPack; ++e)
        B[l / 4].set(n * kStep + l % 4 * kPack + e, element<T>(w, b[n], l, e));
  float D[kLanes][4];
  for (int l = 0; l < kLanes; ++l)
    for (int n = 0; n < 4; ++n) {
      const float before =
          kC == 4 ? element<float>(w, c[n], l, 0) : element<f16>(w, c[n / 2], l, n % 2);
      const Line<T>&row = A[l / 4 + 8 * (n / 2)], &column = B[l % 4 * 2 + n % 2];
      D[l][n] = add_products(*w.launch, before, row, column, kK);
    }
  for (int l = 0; l < kLanes; ++l)
    for (int n = 0; n < 4; ++n) {
      if (kC == 4)
        w.row<float>(i.o[n])[l] = D[l][n];
      else
        w.row<f16>(i.o[n / 2])[2 * l + n % 2] = static_cast<f16>(D[l][n]);
    }
}

// Element (row, k), of `size` bytes, of an operand in shared memory, rows along m or n.
u64 operand_at(u64 descriptor, int row, int k, int size, bool transposed) {
  const u64 start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
            stride = (descriptor >> 32 & 0x3fff) << 4;
  const int mode = descriptor >> 62, group = 16 / size;
  if (mode == 0) {  // 8 x 16 bytes side by side
    if (transposed) return start + row / 8 * stride + k / 8 * leading + k % 8 * 16 + row % 8 * 2;
    return start + row / 8 * stride + k / group * leading + row % 8 * 16 + k % group * size;
  }
  const int width = mode == 1 ? 128 : mode == 2 ? 64 : 32, values = width / size;
  u64 at = transposed
               ? start + row / values * leading + k / 8 * stride + k % 8 * width + row % values * 2
               : start + row / 8 * stride + row % 8 * width + k * size;
  return at ^ ((at >> 7 & (width / 16 - 1)) << 4);
}

// wgmma d{n/2}, a{4} or descriptor, descriptor, scale-d: 16 rows a warp. `imm`: n; size: registers
// of A; round: bit 0 -A, bit 1 -B, bit 2 A transposed, bit 3 B transposed (of 16 bits alone).
template <typename T>
void group_multiply(Warp& w, const Inst& i, u32) {
  constexpr int kSize = sizeof(T), kK = 32 / kSize;
  const int columns = static_cast<int>(i.imm), results = columns / 2;
  const s32 *a = i.o + results, *b = a + i.size;
  const bool keeps = w.pred(b[1]) & 1;
  const float sign = (i.round & 1) != (i.round >> 1 & 1) ? -1 : 1;
  auto read = [&](u64 address) {
    T x;
    std::memcpy(&x, shared_at(w, i, 0, address, kSize, kRead, nullptr), kSize);
    return to_float(x);
  };
  Line<T> A[16];
  if (i.size == 4) {
    read_a<T, kK>(w, a, A);
  } else {
    const u64 from = *w.row<u64>(a[0]);
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < kK; ++k)
        A[row].set(k, read(operand_at(from, w.index % 4 * 16 + row, k, kSize, i.round & 4)));
  }
  const u64 from = *w.row<u64>(b[0]);
  std::vector<Line<T>> B(columns);
  for (int n = 0; n < columns; ++n)
    for (int k = 0; k < kK; ++k)
      B[n].set(k, sign * read(operand_at(from, n, k, kSize, i.round & 8)));
  for (int l = 0; l < kLanes; ++l)
    for (int n = 0; n < results; ++n) {
      const Line<T>& row = A[l / 4 + n / 2 % 2 * 8];
      float& d = w.row<float>(i.o[n])[l];
      d = add_products(*w.launch, keeps ? d : 0, row, B[n / 4 * 8 + l % 4 * 2 + n % 2], kK);
    }
}

Register matrices([](Registry& r) {
  r.add("ldmatrix", load_matrix);
  r.add("stmatrix", store_matrix);
  r.add("mma.m16n8k16.f32.f16", multiply<f16, 16, float>);
  r.add("mma.m16n8k8.f32.f16", multiply<f16, 8, float>);
  r.add("mma.m16n8k16.f16.f16", multiply<f16, 16, f16>);
  r.add("mma.m16n8k8.f16.f16", multiply<f16, 8, f16>);
  r.add("mma.m16n8k16.f32.bf16", multiply<bf16, 16, float>);
  r.add("mma.m16n8k8.f32.bf16", multiply<bf16, 8, float>);
  r.add("mma.m16n8k8.f32.tf32", multiply<Tf32, 8, float>);
  r.add("mma.m16n8k4.f32.tf32", multiply<Tf32, 4, float>);
  r.add("wgmma.f16", group_multiply<f16>);
  r.add("wgmma.bf16", group_multiply<bf16>);
  r.add("wgmma.tf32", group_multiply<Tf32>);
});

}  // namespace
}  // namespace ptxrun
