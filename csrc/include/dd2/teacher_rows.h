// A teacher's next-token logits with the guidance and filters to apply: plain data, an argument of
// every operator over them.
#pragma once

#include "dd2/host_device.h"

namespace dd2 {

// kAny: in place of a type that a kernel learns at run time.
enum class LogitType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kAny = 3 };

// Threads of a block that filters a short row in shared memory, of so many logits at most: what does
// not depend on the row's length costs each thread the same.
constexpr int kFewThreads = 64;
constexpr long long kFewThreadsRow = 4096;

struct TeacherRows {
  const void* logits;  // [rows, vocabulary], rows logits_stride elements apart
  const void* uncond;  // likewise with uncond_stride, or null for no guidance
  const float* scale;  // [rows]
  long long logits_stride;
  long long uncond_stride;
  long long rows;
  long long vocabulary;
  long long top_k;  // 0 is off
  float top_p;      // 1 is off
  LogitType logit_type;

  DD2_HD bool filtered() const { return (top_k > 0 && top_k < vocabulary) || top_p < 1.0f; }

  // Threads of a block that filters a row.
  DD2_HD int filter_threads(bool staged) const {
    return staged && vocabulary <= kFewThreadsRow ? kFewThreads : kThreads;
  }

  // What a row takes in shared memory: whole fours.
  DD2_HD long long staged_floats() const { return (vocabulary + 3) / 4 * 4; }
};

}  // namespace dd2
