// Arguments of the small generator's kernels, plain data, and where activations lie on GPUs.
#pragma once

#include "dd2/small_network.h"

namespace dd2 {

// Embeddings of all tokens in one pass, and images of embeddings.
struct SmallGeneratorParams {
  SmallTransformer network;  // and its flow head's weights; null: x are embeddings
  const float* decoder;      // weights; null: no images
  const float* x;            // [images, tokens, dim], noise or embeddings; null for
  const long long* indices;  // the noise of these images [images] under the seed
  const long long* labels;   // [images]
  float* embeddings;         // [images, tokens, dim], or null
  float* pixels;             // [images, 3, 2 grid, 2 grid] with grid^2 = tokens
  float* workspace;          // on GPUs, of the plan's size: activations beyond shared memory
  long long seed;
  long long images;
  int head_width;
  int head_blocks;
  int decoder_width;
};

constexpr int kSmallThreads = 384;    // of a block of the GPU kernel

// Where one image's activations lie on a GPU, in floats. Rows of inputs are eight floats longer
// than a multiple of 16, so that four rows, eight floats of each, lie in different banks.
struct SmallMemory {
  int code, row, pixel;   // lengths: of noise, which embeddings replace; of h, y, aside; of zeros
  int h, y, aside, wide;  // where they begin; wide is for the widest layer
  int sums, capacity, zeros;

  SmallMemory() = default;
  DD2_HD explicit SmallMemory(const SmallGeneratorParams& p) {
    const int n = p.network.tokens;
    int width = up_to_panel(p.network.dim);
    code = width + 8;
    const auto least = [&](int other) { width = width < other ? other : width; };
    if (p.network.weights != nullptr) {
      least(p.network.width);
      least(p.head_width);
    }
    if (p.decoder != nullptr) least(p.decoder_width);
    pixel = width + 8;
    row = pixel < 40 ? 40 : pixel;  // nine taps of four pixels fit, too
    h = n * code;
    y = h + n * row;
    aside = y + n * row;
    wide = aside + n * row;
    sums = wide + 4 * n * pixel;
    // The widest layer; where tiles of rows are few, parts of one three times as wide as its input.
    const int parts = n <= 16 ? 4 : n <= 32 ? 2 : 1;
    capacity = parts > 1 ? parts * n * (3 * width + kPanel) : n * (4 * width + kPanel);
    zeros = sums + capacity;
  }

  DD2_HD long long floats() const { return zeros + pixel; }
};

}  // namespace dd2
