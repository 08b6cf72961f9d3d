// Arguments of the conditional-score kernels; plain data, shared by every native build.
#pragma once

namespace dd2 {

enum class LogitType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Computes out = x0 [rows, draws, dim], or out = J u where `direction` is given.
struct ConditionalScoreParams {
  float* out;              // [rows, draws, dim]
  const float* x_t;        // [rows, draws, dim]
  const float* t;          // [rows, draws]
  const float* direction;  // u [rows, draws, dim], or null for x0
  const void* logits;      // [rows, vocabulary], rows logits_stride elements apart
  const void* uncond;      // likewise with uncond_stride, or null for no guidance
  const float* scale;      // [rows]
  const float* codebook;   // [vocabulary, dim]
  long long logits_stride;
  long long uncond_stride;
  long long rows;
  long long draws;
  long long vocabulary;
  long long dim;
  long long top_k;  // 0 is off
  float top_p;      // 1 is off
  LogitType logit_type;
};

}  // namespace dd2
