// A small generator on CPUs: a causal transformer, its flow head at t = 1 and the tokenizer's
// decoder, all layers of one image by one thread while its activations are in cache.

#include "dd2/small_generator.h"

#include "dispatch.h"
#include "small_decoder.h"
#include "small_transformer.h"

namespace dd2::cpu::DD2_ISA {
namespace {

// What one image takes: its noise, embeddings and activations.
struct Scratch {
  Buffer<float> noise, latents;
  Activations layers;

  explicit Scratch(const SmallGeneratorParams& p)
      : noise(allocate<float>(static_cast<int64_t>(p.network.tokens) * p.network.dim)),
        latents(allocate<float>(static_cast<int64_t>(p.network.tokens) * p.network.dim)),
        layers(room(p)) {}

  static Room room(const SmallGeneratorParams& p) {
    Room room;
    if (p.network.weights != nullptr) {
      room.transformer(p.network, 1);
      room.rows(p.network.tokens, p.head_width);
      room.rows(p.network.tokens, up_to_panel(p.network.dim));
    }
    if (p.decoder != nullptr) room.decoder(p.network.tokens, p.network.dim, p.decoder_width);
    return room;
  }
};

// The noise of one image, or its embeddings.
DD2_INLINE const float* input(const SmallGeneratorParams& p, int64_t image, Scratch& scratch) {
  const int64_t count = static_cast<int64_t>(p.network.tokens) * p.network.dim;
  if (p.x != nullptr) return p.x + image * count;
  draw_noise(p.seed, p.indices, p.images, image, count, scratch.noise.get());
  return scratch.noise.get();
}

// Embeddings [n][dim] of one image, x_i = eps_i - v(eps_i, t = 1, f_i).
void generate(const SmallGeneratorParams& p, int64_t image, const float* noise, float* out,
              Activations& scratch) {
  const SmallTransformer& net = p.network;
  const int n = net.tokens, dim = net.dim, width = net.width, head = p.head_width;
  float *h = scratch.h.get(), *y = scratch.y.get(), *wide = scratch.wide.get();
  PackedWeights weights{net.weights};
  transform(net, weights, noise, p.labels + image, 1, scratch);
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
        generate(p, image, x, out, scratch.layers);
        x = out;
      }
      if (p.decoder != nullptr) {
        decode(p.decoder, p.network.tokens, p.network.dim, p.decoder_width, x,
               p.pixels + image * 12 * p.network.tokens, scratch.layers);
      }
    }
  }
}

}  // namespace dd2::cpu::DD2_ISA
