// Teachers' logits as the tensor-core kernels read them: eight neighbours a lane, of two rows.
#pragma once

#include "dd2/guided_row.cuh"
#include "dd2/mma.cuh"

namespace dd2 {

// Eight logits as stored.
template <LogitType kType>
struct LogitGroup {
  static constexpr int kSize = 8;
  static constexpr int kBytes = kType == LogitType::kFloat32 ? 4 : 2;
  static constexpr int kVectors = kSize * kBytes / 16;

  uint4 words[kVectors];

  // From `start` on, in 16 bytes.
  DD2_DEVICE void load(const void* logits, unsigned start) {
    DD2_UNROLL_ALL
    for (int i = 0; i < kVectors; ++i) words[i] = static_cast<const uint4*>(logits)[start + i];
  }

  // Logits j, ..., j + 7 of a row with any alignment; beyond the vocabulary -inf.
  DD2_DEVICE void load_one_by_one(const void* row, long long j, long long vocabulary) {
    const char* source = static_cast<const char*>(row) + j * kBytes;
    constexpr unsigned kOut = kType == LogitType::kFloat16 ? 0xfc00fc00u
                              : kType == LogitType::kBFloat16 ? 0xff80ff80u
                                                              : 0xff800000u;
    DD2_UNROLL_ALL
    for (int i = 0; i < kVectors; ++i) words[i] = make_uint4(kOut, kOut, kOut, kOut);
    DD2_UNROLL_ALL
    for (int i = 0; i < kSize; ++i) {
      if (j + i < vocabulary) insert(i, source);
    }
  }

  DD2_DEVICE float operator[](int i) const {
    if constexpr (kType == LogitType::kFloat32) {
      return __uint_as_float(word(i));
    } else {
      const unsigned pair = word(i / 2);
      if constexpr (kType == LogitType::kFloat16) {
        return half_to_float(static_cast<unsigned short>(i % 2 ? pair >> 16 : pair));
      }
      return __uint_as_float(i % 2 ? pair & 0xffff0000u : pair << 16);
    }
  }

 private:
  DD2_DEVICE unsigned word(int i) const {
    const uint4& v = words[i / 4];
    return i % 4 == 0 ? v.x : i % 4 == 1 ? v.y : i % 4 == 2 ? v.z : v.w;
  }

  DD2_DEVICE void insert(int i, const char* source) {
    const int w = i * kBytes / 4;
    uint4& v = words[w / 4];
    unsigned& word = w % 4 == 0 ? v.x : w % 4 == 1 ? v.y : w % 4 == 2 ? v.z : v.w;
    if constexpr (kType == LogitType::kFloat32) {
      word = reinterpret_cast<const unsigned*>(source)[i];
    } else {
      const unsigned bits = reinterpret_cast<const unsigned short*>(source)[i];
      word = i % 2 ? (word & 0xffffu) | bits << 16 : (word & 0xffff0000u) | bits;
    }
  }
};

// Whether 16-byte loads, which LogitGroups counts in 32 bits, can read groups of a teacher's rows.
template <LogitType kType>
DD2_DEVICE bool rows_are_vectors(const TeacherRows& p) {
  constexpr long long kSize = 16 / LogitGroup<kType>::kBytes;
  const auto start = reinterpret_cast<unsigned long long>(p.logits) |
                     reinterpret_cast<unsigned long long>(p.uncond);
  const long long stride = Max()(p.logits_stride, p.uncond_stride);
  const long long end = (p.rows - 1) * stride + p.vocabulary;
  return start % 16 == 0 && p.logits_stride % kSize == 0 && p.uncond_stride % kSize == 0 &&
         end <= kSize << 32;
}

// Whether a logit of -inf, or the end of the row, rules code j out.
template <LogitType kType>
DD2_DEVICE bool ruled_out(const TeacherRows& p, const GuidedRow<kType>& row, long long j) {
  if (j >= p.vocabulary) return true;
  if (LogitReader<kType>::read(row.cond, j) == negative_infinity()) return true;
  return row.uncond != nullptr && LogitReader<kType>::read(row.uncond, j) == negative_infinity();
}

// A lane's logits of the rows of its two tokens.
template <LogitType kType>
struct LogitGroups {
  using Group = LogitGroup<kType>;

  unsigned cond_start[2];  // where the rows begin, in 16 bytes, if rows_are_vectors
  unsigned uncond_start[2];
  float scale[2];
  Group cond[2];
  Group uncond[2];

  DD2_DEVICE void set_row(int r, const TeacherRows& p, long long row) {
    cond_start[r] = static_cast<unsigned>(row * p.logits_stride * Group::kBytes / 16);
    uncond_start[r] = static_cast<unsigned>(row * p.uncond_stride * Group::kBytes / 16);
    scale[r] = p.scale[row];
  }

  // Logits j, ..., j + 7 of both rows, which are vectors and end later; j is a multiple of 8.
  DD2_DEVICE void load(const TeacherRows& p, int j) {
    const unsigned within = static_cast<unsigned>(j) * Group::kBytes / 16;
    DD2_UNROLL_ALL
    for (int r = 0; r < 2; ++r) cond[r].load(p.logits, cond_start[r] + within);
    if (p.uncond == nullptr) return;
    DD2_UNROLL_ALL
    for (int r = 0; r < 2; ++r) uncond[r].load(p.uncond, uncond_start[r] + within);
  }

  // Likewise of rows with any alignment and length.
  DD2_DEVICE void load_one_by_one(int r, const GuidedRow<kType>& row, long long j,
                                  long long vocabulary) {
    cond[r].load_one_by_one(row.cond, j, vocabulary);
    if (row.uncond != nullptr) uncond[r].load_one_by_one(row.uncond, j, vocabulary);
  }

  // The guided logit where neither logit is -inf; where one is, -inf, +inf or NaN.
  DD2_DEVICE float guided(int r, int i) const {
    const float u = uncond[r][i];
    return fused_multiply_add(scale[r], cond[r][i] - u, u);
  }
};

}  // namespace dd2
