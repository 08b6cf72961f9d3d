// Arguments of the kernel of the small logit student; plain data.
#pragma once

#include "dd2/small_network.h"

namespace dd2 {

// Tokens of a student's pass, then of a teacher's passes over all of them, and images of these.
struct SmallStudentParams {
  SmallTransformer student;  // and its classifier's weights; null: `tokens` are there already
  SmallTransformer teacher;  // likewise; of the passes
  const float* codebook;     // [vocabulary, dim]
  const float* decoder;      // weights; null: no images
  const float* noise;        // [images, tokens, dim]; null for
  const long long* indices;  // the noise of these images [images] under the seed
  const long long* labels;   // [images]
  long long* tokens;         // [images, tokens], -1 for none
  float* pixels;             // [images, 3, 2 grid, 2 grid] with grid^2 = tokens
  long long seed;
  long long images;
  long long vocabulary;
  long long flow_steps;
  long long passes;
  long long top_k;  // of the passes, and so the next two
  float top_p;
  float scale;  // of guidance; 1: none
  float temperature;  // of the student
  int decoder_width;
};

}  // namespace dd2
