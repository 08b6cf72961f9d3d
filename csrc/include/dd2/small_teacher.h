// Arguments of the kernel of the small teacher; plain data.
#pragma once

#include "dd2/small_network.h"

namespace dd2 {

// Tokens of a teacher, one after the other.
struct SmallTeacherParams {
  SmallTransformer network;  // and its classifier's weights
  const float* codebook;     // [vocabulary, dim]
  const long long* labels;   // [images]
  const long long* index;    // [images], the numbers of the images under the seeds
  const long long* step_seeds;  // [images, tokens], or [tokens] with a stride of 0
  long long* out;            // [images, tokens]; the first `prefix` are there already
  long long images;
  long long seed_stride;     // between images
  int prefix;
  int vocabulary;
  long long top_k;
  float top_p;
  float scale;  // of guidance; 1: none
};

}  // namespace dd2
