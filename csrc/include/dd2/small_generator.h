// Arguments of the kernel of the small generator; plain data.
#pragma once

#include "dd2/small_network.h"

namespace dd2 {

// Embeddings of all tokens in one pass, and images of embeddings.
struct SmallGeneratorParams {
  SmallTransformer network;  // and its flow head's weights; null: x are embeddings
  const float* decoder;      // weights; null: no images
  const float* x;            // [images, tokens, dim], noise or embeddings; on CPUs null for
  const long long* indices;  // the noise of these images [images] under the seed
  const long long* labels;   // [images]
  float* embeddings;         // [images, tokens, dim], or null
  float* pixels;             // [images, 3, 2 grid, 2 grid] with grid^2 = tokens
  long long seed;
  long long images;
  int head_width;
  int head_blocks;
  int decoder_width;
};

}  // namespace dd2
