// Tensor-core products of halves and the loads that feed them, as one warp's instructions, and what
// else takes an address in shared memory.
//
// Layouts are those of the PTX ISA. With g = lane / 4 and q = lane % 4, a lane holds of
//   A [16, 16]  a[i] = rows g + 8 (i % 2), columns 2q + 8 (i / 2) and the next
//   B [16, 8]   b[i] = rows 2q + 8 i and the next, column g
//   D [16, 8]   d[i] = row g + 8 (i / 2), column 2q + i % 2
// two halves a register, the first in the low bits.
#pragma once

#include "dd2/block.cuh"

#ifdef DD2_LAUNCHERS_ONLY
#define DD2_UNROLL_ALL
#else
#define DD2_UNROLL_ALL _Pragma("unroll")
#endif

namespace dd2 {

#ifdef DD2_LAUNCHERS_ONLY

using SharedAddress = unsigned char*;
using no_device::add_in_shared;
using no_device::add_where;
using no_device::copy_to_shared;
using no_device::copy_to_shared_or_zero;
using no_device::count_in_shared;
using no_device::exp2_flushed;
using no_device::half_to_float;
using no_device::keep_in_shared;
using no_device::load_four_of_shared;
using no_device::load_matrices;
using no_device::load_matrices_transposed;
using no_device::multiply_add;
using no_device::multiply_add_bfloat16;
using no_device::pack_halves;
using no_device::shared_address;
using no_device::tally_in_shared;
using no_device::wait_for_copies;
using no_device::weigh_in_shared;

#else

using SharedAddress = unsigned;

DD2_DEVICE SharedAddress shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// Adds to a sum where value >= floor, in two instructions without a branch.
DD2_DEVICE void add_where(unsigned& sum, unsigned weight, float value, float floor) {
#ifdef __CUDA_ARCH__
  asm("{\n\t"
      ".reg .pred adds;\n\t"
      "setp.ge.f32 adds, %2, %3;\n\t"
      "@adds add.u32 %0, %0, %1;\n\t"
      "}" : "+r"(sum) : "r"(weight), "f"(value), "f"(floor));
#endif
}

// Adds 1 to word `index` from `words` on, in shared memory, where value >= floor.
DD2_DEVICE void count_in_shared(SharedAddress words, unsigned index, float value, float floor) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "{\n\t"
      ".reg .pred adds;\n\t"
      ".reg .u32 word;\n\t"
      "mad.lo.u32 word, %1, 4, %0;\n\t"
      "setp.ge.f32 adds, %2, %3;\n\t"
      "@adds red.shared.add.u32 [word], 1;\n\t"
      "}" ::"r"(words), "r"(index), "f"(value), "f"(floor) : "memory");
#endif
}

// Likewise adds a weight, and its carry to the word kHigh bytes on: atomics of 32 bits are native,
// of 64 bits a loop.
template <int kHigh>
DD2_DEVICE void weigh_in_shared(SharedAddress words, unsigned index, unsigned weight, float value,
                                float floor) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "{\n\t"
      ".reg .pred adds;\n\t"
      ".reg .u32 word, sum;\n\t"
      "mad.lo.u32 word, %1, 4, %0;\n\t"
      "mov.u32 sum, 0;\n\t"
      "setp.ge.f32 adds, %3, %4;\n\t"
      "@adds atom.shared.add.u32 sum, [word], %2;\n\t"
      "add.u32 sum, sum, %2;\n\t"
      "setp.lt.u32 adds, sum, %2;\n\t"
      "@adds red.shared.add.u32 [word+%5], 1;\n\t"
      "}" ::"r"(words), "r"(index), "r"(weight), "f"(value), "f"(floor), "n"(kHigh) : "memory");
#endif
}

// Adds to word `index` from `words` on, in shared memory.
template <unsigned kAmount>
DD2_DEVICE void add_in_shared(SharedAddress words, unsigned index) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "{\n\t"
      ".reg .u32 word;\n\t"
      "mad.lo.u32 word, %1, 4, %0;\n\t"
      "red.shared.add.u32 [word], %2;\n\t"
      "}" ::"r"(words), "r"(index), "n"(kAmount) : "memory");
#endif
}

// Adds a mass to word `index` from `words` on, in shared memory, and 2^16 and its carry to the word
// kHigh bytes on.
template <int kHigh>
DD2_DEVICE void tally_in_shared(SharedAddress words, unsigned index, unsigned mass) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "{\n\t"
      ".reg .u32 word, sum, one;\n\t"
      "mad.lo.u32 word, %1, 4, %0;\n\t"
      "atom.shared.add.u32 sum, [word], %2;\n\t"
      "add.cc.u32 sum, sum, %2;\n\t"
      "addc.u32 one, 65536, 0;\n\t"
      "red.shared.add.u32 [word+%3], one;\n\t"
      "}" ::"r"(words), "r"(index), "r"(mass), "n"(kHigh) : "memory");
#endif
}

// Four neighbours of shared memory, aligned.
DD2_DEVICE float4 load_four_of_shared(SharedAddress four) {
  float4 v{};
#ifdef __CUDA_ARCH__
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(four) : "memory");
#endif
  return v;
}

// Stores a value >= floor where `next` points to, which then points behind it.
DD2_DEVICE void keep_in_shared(SharedAddress& next, float value, float floor) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "{\n\t"
      ".reg .pred keeps;\n\t"
      "setp.ge.f32 keeps, %1, %2;\n\t"
      "@keeps st.shared.f32 [%0], %1;\n\t"
      "@keeps add.u32 %0, %0, 4;\n\t"
      "}" : "+r"(next) : "f"(value), "f"(floor) : "memory");
#endif
}

// d += A B.
DD2_DEVICE void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#ifdef __CUDA_ARCH__
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// The same of bfloat16s.
DD2_DEVICE void multiply_add_bfloat16(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                      unsigned b1) {
#ifdef __CUDA_ARCH__
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Four 8x8 matrices of halves whose 16-byte rows lanes 8i to 8i + 7 point at: r[i] has row g,
// columns 2q and the next.
DD2_DEVICE void load_matrices(unsigned (&r)[4], SharedAddress row) {
#ifdef __CUDA_ARCH__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row));
#endif
}

// Likewise, transposed: r[i] has rows 2q and the next, column g.
DD2_DEVICE void load_matrices_transposed(unsigned (&r)[4], SharedAddress row) {
#ifdef __CUDA_ARCH__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row));
#endif
}

// Starts a copy of 16 bytes, in shared memory once this thread has waited for its copies.
DD2_DEVICE void copy_to_shared(SharedAddress target, const void* source) {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source) : "memory");
#endif
}

// Zeros where there is nothing; the source is not read then.
DD2_DEVICE void copy_to_shared_or_zero(SharedAddress target, const void* source, bool there) {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(there ? 16 : 0)
               : "memory");
#endif
}

DD2_DEVICE void wait_for_copies() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Both rounded to the nearest half.
DD2_DEVICE unsigned pack_halves(float low, float high) {
  unsigned packed = 0;
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
#endif
  return packed;
}

DD2_DEVICE float half_to_float(unsigned short bits) {
  float value = 0.0f;
#ifdef __CUDA_ARCH__
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
#endif
  return value;
}

// exp2 in one instruction; relative error 2^-22, results below 2^-126 are 0.
DD2_DEVICE float exp2_flushed(float x) {
  float value = 0.0f;
#ifdef __CUDA_ARCH__
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
#endif
  return value;
}

#endif

// Both rounded to the nearest bfloat16.
DD2_DEVICE unsigned pack_bfloat16(float low, float high) {
  unsigned packed = 0;
#ifdef __CUDA_ARCH__
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
#endif
  return packed;
}

DD2_DEVICE int quad_lane() { return static_cast<int>(threadIdx.x % 4); }

// Over the four lanes that hold a row of a product.
template <typename T, typename Combine>
DD2_DEVICE T quad_reduce(T value, Combine combine) {
  value = combine(value, __shfl_xor_sync(kAllLanes, value, 1));
  return combine(value, __shfl_xor_sync(kAllLanes, value, 2));
}

// Two floats as sums of two halves.
struct SplitPair {
  unsigned high;
  unsigned low;
};

// To 2^-23 relative or 2^-25 absolute.
DD2_DEVICE SplitPair split_nearest(float first, float second) {
  const unsigned high = pack_halves(first, second);
  return {high, pack_halves(first - half_to_float(static_cast<unsigned short>(high)),
                            second - half_to_float(static_cast<unsigned short>(high >> 16)))};
}

// To 2^-22 relative or 2^-25 absolute: the high part is cut off, not rounded, an instruction less.
DD2_DEVICE SplitPair split_cut(float first, float second) {
  const float a = __uint_as_float(__float_as_uint(first) & 0xffffe000u);
  const float b = __uint_as_float(__float_as_uint(second) & 0xffffe000u);
  return {pack_halves(a, b), pack_halves(first - a, second - b)};
}

}  // namespace dd2
