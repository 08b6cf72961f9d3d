// What the loss of Conditional Score Distillation adds to a conditional score; plain data.
#pragma once

namespace dd2 {

// With D = x0 of a token: L = w (D - F)·(D - x - alpha (D - F)), or w (F - D)·x with `dmd`.
// `loss` null: no loss is wanted. A gradient that is null is not written.
struct CsdLossParams {
  const float* x = nullptr;       // [rows, dim]
  const float* fake = nullptr;    // F [rows, draws, dim]
  const float* weight = nullptr;  // w [rows, draws], or null
  float* loss = nullptr;          // [rows, draws]
  float* grad_x = nullptr;        // [rows, draws, dim] through x alone, x_t held
  float* grad_fake = nullptr;     // [rows, draws, dim]
  float* grad_x_t = nullptr;      // [rows, draws, dim]: w J u if it has a direction, else dL/dD
  float alpha = 1.0f;
  bool dmd = false;
  float weight_power = 0.0f;  // w = mean_c|x - D|^-weight_power where w is null; a constant
};

}  // namespace dd2
