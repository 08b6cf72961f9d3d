// A small teacher on CPUs: token after token, several images at a time, so that a step reads the
// weights once for all of them. Keys and values stay in cache between the steps.

#include "dd2/philox.cuh"
#include "dd2/sample_code.h"
#include "dd2/small_teacher.h"

#include "dispatch.h"
#include "draw_code.h"
#include "small_layers.h"

namespace dd2::cpu::DD2_ISA {
namespace {

constexpr int kImages = 6;  // at a time, each of one row or, guided, two

// What the steps of some images need. Of every row and layer, keys are panels of 16 tokens for each
// head, [heads][tokens / 16][size][16], and values are [tokens][width].
struct Scratch {
  int64_t padded, keys_size, values_size;
  Buffer<float> h, y, wide, mixed, scores, keys, values, logits, scale;
  DrawBuffers draw;

  Scratch(const SmallTeacherParams& p, int rows)
      : padded(up_to_panel(p.network.tokens)),
        keys_size(padded * p.network.width),
        values_size(static_cast<int64_t>(p.network.tokens) * p.network.width),
        h(allocate<float>(static_cast<int64_t>(rows) * p.network.width)),
        y(allocate<float>(static_cast<int64_t>(rows) * p.network.width)),
        wide(allocate<float>(static_cast<int64_t>(rows) * 4 * p.network.width)),
        mixed(allocate<float>(static_cast<int64_t>(rows) * p.network.width)),
        scores(allocate<float>(padded)),
        keys(allocate<float>(rows * p.network.layers * keys_size)),
        values(allocate<float>(rows * p.network.layers * values_size)),
        logits(allocate<float>(static_cast<int64_t>(rows) * up_to_panel(p.vocabulary))),
        scale(allocate<float>(kImages)),
        draw(round_up(p.vocabulary, kLanes)) {
    for (int i = 0; i < kImages; ++i) scale[i] = p.scale;
  }
};

// Attention of one row's token `step`, whose q, k, v are in qkv [3 width], over those before it.
DD2_INLINE void attend_step(const float* qkv, int step, int width, int heads, float* keys,
                            float* values, int64_t padded, float* scores, float* out) {
  const int size = width / heads, panels = step / kPanel + 1;
  std::memcpy(values + static_cast<int64_t>(step) * width, qkv + 2 * width,
              static_cast<size_t>(width) * sizeof(float));
  for (int head = 0; head < heads; ++head) {
    const float *q = qkv + head * size, *k = q + width;
    float* own = keys + head * padded * size;
    float* column = own + step / kPanel * kPanel * size + step % kPanel;
    for (int c = 0; c < size; ++c) column[c * kPanel] = k[c];
    product({q, 0}, 1, {own, kPanel, static_cast<int64_t>(kPanel) * size, size, panels}, nullptr,
            scores, padded);
    softmax(scores, step + 1, panels * kPanel);
    product({scores, 0}, 1, {values + head * size, width, kPanel, step + 1, size / kPanel}, nullptr,
            out + head * size, width);
  }
}

// All tokens of `count` images from `first` on.
void draw_images(const SmallTeacherParams& p, int64_t first, int count, Scratch& scratch) {
  const SmallTransformer& net = p.network;
  const int n = net.tokens, width = net.width, vocabulary = p.vocabulary;
  const bool guided = p.scale != 1.0f;
  const int rows = guided ? 2 * count : count;
  const int64_t logits_stride = up_to_panel(vocabulary);
  float *h = scratch.h.get(), *y = scratch.y.get(), *wide = scratch.wide.get();
  bool drawn[kImages];
  for (bool& good : drawn) good = true;
  for (int step = 0; step < n; ++step) {
    PackedWeights weights{net.weights};
    const float* classes = weights.floats(static_cast<int64_t>(net.classes) * width);
    const float* position = weights.floats(static_cast<int64_t>(n) * width) +
                            static_cast<int64_t>(step) * width;
    const PackedLayer input = weights.layer(net.dim, width);
    for (int r = 0; r < rows; ++r) {
      const int64_t image = first + r % count;
      float* row = h + static_cast<int64_t>(r) * width;
      if (step == 0) {
        const int64_t label = r < count ? p.labels[image] : net.classes - 1;
        std::memcpy(row, classes + label * width, static_cast<size_t>(width) * sizeof(float));
      } else {
        const int64_t code = p.out[image * n + step - 1];
        apply(input, p.codebook + (code > 0 ? code : 0) * net.dim, 0, 1, row, width);
      }
      for (int i = 0; i < width; i += kLanes) store(row + i, load(row + i) + load(position + i));
    }
    for (int layer = 0; layer < net.layers; ++layer) {
      const PackedBlock block(weights, width);
      normalize(h, rows, width, y);
      apply(block.qkv, y, width, rows, wide, 3 * width);
      for (int r = 0; r < rows; ++r) {
        const int64_t entry = static_cast<int64_t>(r) * net.layers + layer;
        attend_step(wide + static_cast<int64_t>(r) * 3 * width, step, width, net.heads,
                    scratch.keys.get() + entry * scratch.keys_size,
                    scratch.values.get() + entry * scratch.values_size, scratch.padded,
                    scratch.scores.get(), scratch.mixed.get() + static_cast<int64_t>(r) * width);
      }
      apply(block.projection, scratch.mixed.get(), width, rows, h, width, Into::kAdd);
      mlp(block, h, rows, width, y, wide);
    }
    if (step < p.prefix) continue;
    normalize(h, rows, width, y);
    float* logits = scratch.logits.get();
    apply(weights.layer(width, vocabulary), y, width, rows, logits, logits_stride);
    const TeacherRows teacher{logits, guided ? logits + count * logits_stride : nullptr,
                              scratch.scale.get(), logits_stride, logits_stride, count, vocabulary,
                              p.top_k, p.top_p, LogitType::kFloat32};
    for (int i = 0; i < count; ++i) {
      Row row = scratch.draw.rows.row(0);
      prepare_row(teacher, i, row, scratch.draw.rows, true);
      drawn[i] = drawn[i] && !row.invalid;  // what follows a code that is none is none
      p.out[(first + i) * n + step] =
          !drawn[i] ? -1
                    : draw_code(row, scratch.draw.rows.mass.get(), scratch.draw.ends.get(),
                                row_uniform(p.step_seeds[(first + i) * p.seed_stride + step],
                                            p.index[first + i], kSampleStream));
    }
  }
}

}  // namespace

void launch_small_teacher(const SmallTeacherParams& p, int num_threads) {
  if (p.images <= 0) return;
  const int64_t share = (p.images + num_threads - 1) / num_threads;
  const int64_t together = share < kImages ? share : kImages;
  const int64_t groups = (p.images + together - 1) / together;
  PerThread<Scratch> all_scratch(num_threads, groups, p, static_cast<int>(2 * together));
#pragma omp parallel num_threads(all_scratch.threads())
  {
    Scratch& scratch = all_scratch.mine();
#pragma omp for schedule(dynamic)
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = group * together, left = p.images - first;
      draw_images(p, first, static_cast<int>(left < together ? left : together), scratch);
    }
  }
}

}  // namespace dd2::cpu::DD2_ISA
