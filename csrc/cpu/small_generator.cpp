// A small generator on CPUs: a causal transformer, its flow head at t = 1 and the tokenizer's
// decoder, all layers of one image by one thread while its activations are in cache.

#include "dd2/small_generator.h"

#include "dispatch.h"
#include "image_noise.h"
#include "memory.h"
#include "simd.h"
#include "small_layers.h"

namespace dd2::cpu::DD2_ISA {
namespace {

constexpr int kPixels = 16;  // whose neighbourhoods are laid out at a time

// Activations of one image. `aside` outlives others: a condition, or a convolution's results.
struct Scratch {
  Buffer<float> noise, latents, h, y, wide, aside, queries, scores;

  explicit Scratch(const SmallGeneratorParams& p) {
    const int64_t n = p.network.tokens, dim = up_to_panel(p.network.dim);
    const int64_t padded = up_to_panel(p.network.tokens);
    int64_t row = 0, most = 0, query = 0, scored = 0;
    const auto needs = [](int64_t& size, int64_t count) { size = size < count ? count : size; };
    if (p.network.weights != nullptr) {
      const int64_t width = p.network.width > p.head_width ? p.network.width : p.head_width;
      needs(row, n * (width > dim ? width : dim));
      needs(most, n * 4 * width);
      query = kPanel * (p.network.width / p.network.heads);
      scored = kPanel * padded;
    }
    if (p.decoder != nullptr) {
      const int64_t width = p.decoder_width;
      needs(row, n * (width > dim ? width : dim));
      needs(row, n * 4 * kPanel);
      needs(most, n * 4 * width);
      needs(most, kPixels * 9 * (width > dim ? width : dim));
    }
    noise = allocate<float>(n * p.network.dim);
    latents = allocate<float>(n * p.network.dim);
    h = allocate<float>(row);
    y = allocate<float>(row);
    aside = allocate<float>(row);
    wide = allocate<float>(most);
    queries = allocate<float>(query);
    scores = allocate<float>(scored);
  }
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

// The noise of one image, or its embeddings.
DD2_INLINE const float* input(const SmallGeneratorParams& p, int64_t image, Scratch& scratch) {
  const int64_t count = static_cast<int64_t>(p.network.tokens) * p.network.dim;
  if (p.x != nullptr) return p.x + image * count;
  const ImageNormalParams noise{nullptr, p.indices, nullptr, p.seed, p.images, count, kNoiseStream};
  for (int64_t i = 0; i * kDrawn < count; ++i) {
    draw_some(noise, image, i * kWide, count - i * kDrawn, scratch.noise.get() + i * kDrawn);
  }
  return scratch.noise.get();
}

// Embeddings [n][dim] of one image, x_i = eps_i - v(eps_i, t = 1, f_i).
void generate(const SmallGeneratorParams& p, int64_t image, const float* noise, float* out,
              Scratch& scratch) {
  const SmallTransformer& net = p.network;
  const int n = net.tokens, dim = net.dim, width = net.width, head = p.head_width;
  float *h = scratch.h.get(), *y = scratch.y.get(), *wide = scratch.wide.get();
  PackedWeights weights{net.weights};
  const float* classes = weights.floats(static_cast<int64_t>(net.classes) * width);
  const float* positions = weights.floats(static_cast<int64_t>(n) * width);
  std::memcpy(h, classes + p.labels[image] * width, static_cast<size_t>(width) * sizeof(float));
  apply(weights.layer(dim, width), noise, dim, n - 1, h + width, width);
  for (int64_t i = 0; i < static_cast<int64_t>(n) * width; i += kLanes) {
    store(h + i, load(h + i) + load(positions + i));
  }
  for (int i = 0; i < net.layers; ++i) {
    const PackedBlock block(weights, width);
    normalize(h, n, width, y);
    apply(block.qkv, y, width, n, wide, 3 * width);
    attend(wide, n, width, net.heads, scratch.queries.get(), scratch.scores.get(), y);
    apply(block.projection, y, width, n, h, width, Into::kAdd);
    mlp(block, h, n, width, y, wide);
  }
  float* condition = scratch.aside.get();
  normalize(h, n, width, y);
  apply(weights.layer(width, head), y, width, n, condition, head);
  map(condition, static_cast<int64_t>(n) * head, silu);
  apply(weights.layer(dim, head), noise, dim, n, h, head);
  // y = LN(h) scale + shift, of a modulation in `wide`.
  const auto modulate = [&](int stride) __attribute__((noinline)) {
    normalize_rows(h, n, head, [&](int r, int i, Vec v) {
      const float* shift = wide + static_cast<int64_t>(r) * stride + i;
      store(y + static_cast<int64_t>(r) * head + i, v * load(shift + head) + load(shift));
    });
  };
  float* inner = wide + static_cast<int64_t>(n) * 3 * head;
  for (int block = 0; block < p.head_blocks; ++block) {
    apply(weights.layer(head, 3 * head), condition, head, n, wide, 3 * head);
    modulate(3 * head);
    apply(weights.layer(head, head), y, head, n, inner, head);
    map(inner, static_cast<int64_t>(n) * head, silu);
    apply(weights.layer(head, head), inner, head, n, y, head);
    for (int r = 0; r < n; ++r) {
      const float* gate = wide + static_cast<int64_t>(r) * 3 * head + 2 * head;
      const int64_t row = static_cast<int64_t>(r) * head;
      for (int i = 0; i < head; i += kLanes) {
        store(h + row + i, load(gate + i) * load(y + row + i) + load(h + row + i));
      }
    }
  }
  apply(weights.layer(head, 2 * head), condition, head, n, wide, 2 * head);
  modulate(2 * head);
  const PackedLayer output = weights.layer(head, dim);
  apply(output, y, head, n, h, output.outputs);
  for (int i = 0; i < n; ++i) {
    for (int c = 0; c < dim; ++c) out[i * dim + c] = noise[i * dim + c] - h[i * output.outputs + c];
  }
}

// out [pixels][outputs] = a 3x3 convolution of the image `in` [grid * grid][inputs / 9].
DD2_INLINE void convolve(const PackedLayer& layer, const float* in, int grid, float* around,
                         float* out, Into into = Into::kSet) {
  const int pixels = grid * grid, channels = layer.inputs / 9;
  const size_t bytes = static_cast<size_t>(channels) * sizeof(float);
  for (int first = 0; first < pixels; first += kPixels) {
    const int count = pixels - first < kPixels ? pixels - first : kPixels;
    float* target = around;
    for (int i = first; i < first + count; ++i) {
      for (int dy = -1; dy <= 1; ++dy) {
        for (int dx = -1; dx <= 1; ++dx, target += channels) {
          const int y = i / grid + dy, x = i % grid + dx;
          if (y < 0 || y >= grid || x < 0 || x >= grid) {
            std::memset(target, 0, bytes);
          } else {
            std::memcpy(target, in + (static_cast<int64_t>(y) * grid + x) * channels, bytes);
          }
        }
      }
    }
    apply(layer, around, layer.inputs, count, out + static_cast<int64_t>(first) * layer.outputs,
          layer.outputs, into);
  }
}

// Pixels in [0, 1] of one image's embeddings.
void decode(const SmallGeneratorParams& p, int64_t image, const float* x, Scratch& scratch) {
  const int n = p.network.tokens, dim = p.network.dim, width = p.decoder_width;
  float *h = scratch.h.get(), *y = scratch.y.get(), *wide = scratch.wide.get();
  int grid = 1;
  while (grid * grid < n) ++grid;
  PackedWeights weights{p.decoder};
  const float *shift = weights.floats(dim), *scale = weights.floats(dim);
  for (int i = 0; i < n; ++i) {
    for (int c = 0; c < dim; ++c) y[i * dim + c] = x[i * dim + c] * scale[c] + shift[c];
  }
  convolve(weights.layer(9 * dim, width), y, grid, wide, h);
  const int64_t count = static_cast<int64_t>(n) * width;
  for (int64_t i = 0; i < count; i += kLanes) store(y + i, gelu_erf(load(h + i)));
  float* inner = scratch.aside.get();
  convolve(weights.layer(9 * width, width), y, grid, wide, inner);
  map(inner, count, gelu_erf);
  apply(weights.layer(width, width), inner, width, n, h, width, Into::kAdd);
  map(h, count, gelu_erf);
  apply(weights.layer(width, 4 * width), h, width, n, wide, 4 * width);
  map(wide, 4 * count, gelu_erf);
  // The last convolution has one output: its nine taps of every pixel, then their sums.
  const PackedLayer taps = weights.layer(width, 9);
  apply(taps, wide, width, 4 * n, y, kPanel);
  const float bias = *weights.floats(1);
  const int side = 2 * grid;
  float* out = p.pixels + image * 3 * side * side;
  for (int row = 0; row < side; ++row) {
    for (int column = 0; column < side; ++column) {
      float sum = bias;
      for (int dy = -1; dy <= 1; ++dy) {
        for (int dx = -1; dx <= 1; ++dx) {
          const int from = row + dy, at = column + dx;
          if (from < 0 || from >= side || at < 0 || at >= side) continue;
          const int cell = (from / 2 * grid + at / 2) * 4 + from % 2 * 2 + at % 2;
          sum += y[cell * kPanel + 3 * (dy + 1) + dx + 1];
        }
      }
      const float gray = sum * 0.5f + 0.5f;
      const float clamped = gray < 0.0f ? 0.0f : gray > 1.0f ? 1.0f : gray;
      const float value = sum - sum == 0.0f ? clamped : quiet_nan();
      for (int colour = 0; colour < 3; ++colour) {
        out[(colour * side + row) * side + column] = value;
      }
    }
  }
}

}  // namespace

void launch_small_generator(const SmallGeneratorParams& p, int num_threads) {
  if (p.images <= 0) return;
  PerThread<Scratch> all_scratch(num_threads, p.images, p);
#pragma omp parallel num_threads(all_scratch.threads())
  {
    Scratch& scratch = all_scratch.mine();
#pragma omp for schedule(dynamic)
    for (int64_t image = 0; image < p.images; ++image) {
      const float* x = input(p, image, scratch);
      if (p.network.weights != nullptr) {
        const int64_t size = static_cast<int64_t>(p.network.tokens) * p.network.dim;
        float* out = p.embeddings != nullptr ? p.embeddings + image * size : scratch.latents.get();
        generate(p, image, x, out, scratch);
        x = out;
      }
      if (p.decoder != nullptr) decode(p, image, x, scratch);
    }
  }
}

}  // namespace dd2::cpu::DD2_ISA
