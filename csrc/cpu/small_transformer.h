// The causal transformer of small networks on CPUs, and where the activations of an image lie.
#pragma once

#include "dd2/small_network.h"

#include "image_noise.h"
#include "small_layers.h"

namespace dd2::cpu::DD2_ISA {
namespace {

constexpr int kPixels = 16;  // whose neighbourhoods are laid out at a time

// How much room the parts of a network need, in numbers.
struct Room {
  int64_t row = 0, most = 0, query = 0, scored = 0;

  // Rows of a width with layers of up to four times that.
  void rows(int64_t count, int64_t width) {
    needs(row, count * width);
    needs(most, count * 4 * width);
  }

  void transformer(const SmallTransformer& net, int sequences) {
    rows(static_cast<int64_t>(sequences) * net.tokens, net.width);
    needs(query, kPanel * (net.width / net.heads));
    needs(scored, static_cast<int64_t>(kPanel) * up_to_panel(net.tokens));
  }

  void decoder(int tokens, int dim, int width) {
    const int64_t n = tokens, read = up_to_panel(dim);
    rows(n, width);
    needs(row, n * read);
    needs(row, n * 4 * kPanel);
    needs(most, kPixels * 9 * (width > read ? width : read));
  }

  static void needs(int64_t& size, int64_t count) { size = size < count ? count : size; }
};

// Activations of one image. `aside` outlives others: a condition, or a convolution's results.
struct Activations {
  Buffer<float> h, y, wide, aside, queries, scores;

  explicit Activations(const Room& room)
      : h(allocate<float>(room.row)),
        y(allocate<float>(room.row)),
        wide(allocate<float>(room.most)),
        aside(allocate<float>(room.row)),
        queries(allocate<float>(room.query)),
        scores(allocate<float>(room.scored)) {}
};

// Causal attention of every head over qkv [n][3 width], to out [n][width]; scores and masses have a
// query a lane.
DD2_INLINE void attend(const float* qkv, int n, int width, int heads, float* queries, float* scores,
                       float* out) {
  const int size = width / heads;
  const int64_t stride = 3 * static_cast<int64_t>(width);
  for (int head = 0; head < heads; ++head) {
    const float* q = qkv + head * size;
    const float *k = q + width, *v = k + width;
    for (int first = 0; first < n; first += kPanel) {
      const int rows = n - first < kPanel ? n - first : kPanel, seen = first + rows;
      for (int c = 0; c < size; ++c) {
        for (int i = 0; i < kPanel; ++i) {
          queries[c * kPanel + i] = i < rows ? q[(first + i) * stride + c] : 0.0f;
        }
      }
      product({k, stride}, seen, {queries, kPanel, 0, size, 1}, nullptr, scores, kPanel);
      causal_softmax(scores, seen, first);
      product({scores, 1, kPanel}, rows, {v, stride, kPanel, seen, size / kPanel}, nullptr,
              out + first * width + head * size, width);
    }
  }
}

// h [sequences][n][width] of sequences that start with a class each and all read `input [n][dim]`,
// of which the last is not read.
DD2_INLINE void transform(const SmallTransformer& net, PackedWeights& weights, const float* input,
                          const long long* labels, int sequences, Activations& scratch) {
  const int n = net.tokens, width = net.width, rows = sequences * n;
  const int64_t size = static_cast<int64_t>(n) * width;
  float *h = scratch.h.get(), *y = scratch.y.get(), *wide = scratch.wide.get();
  const float* classes = weights.floats(static_cast<int64_t>(net.classes) * width);
  const float* positions = weights.floats(size);
  apply(weights.layer(net.dim, width), input, net.dim, n - 1, h + width, width);
  for (int64_t i = width; i < size; i += kLanes) store(h + i, load(h + i) + load(positions + i));
  for (int s = sequences - 1; s >= 0; --s) {
    float* start = h + s * size;
    if (s > 0) std::memcpy(start + width, h + width, (size - width) * sizeof(float));
    const float* of_class = classes + labels[s] * width;
    for (int i = 0; i < width; i += kLanes) {
      store(start + i, load(of_class + i) + load(positions + i));
    }
  }
  for (int i = 0; i < net.layers; ++i) {
    const PackedBlock block(weights, width);
    normalize(h, rows, width, y);
    apply(block.qkv, y, width, rows, wide, 3 * width);
    for (int s = 0; s < sequences; ++s) {
      attend(wide + 3 * s * size, n, width, net.heads, scratch.queries.get(), scratch.scores.get(),
             y + s * size);
    }
    apply(block.projection, y, width, rows, h, width, Into::kAdd);
    mlp(block, h, rows, width, y, wide);
  }
}

// The noise of one image under a seed, `count` numbers.
DD2_INLINE void draw_noise(long long seed, const long long* indices, int64_t images, int64_t image,
                           int64_t count, float* out) {
  const ImageNormalParams noise{nullptr, indices, nullptr, seed, images, count, kNoiseStream};
  for (int64_t i = 0; i * kDrawn < count; ++i) {
    draw_some(noise, image, i * kWide, count - i * kDrawn, out + i * kDrawn);
  }
}

}  // namespace
}  // namespace dd2::cpu::DD2_ISA
