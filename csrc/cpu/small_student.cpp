// A small logit student on CPUs: logits of all tokens by one pass over noise, the flow that they give
// each token, as many passes of the teacher as are wanted, and the tokenizer's decoder. An image is
// one thread's while its activations are in cache; rows with and without the class are one batch.

#include "dd2/small_student.h"

#include "dispatch.h"
#include "flow_rows.h"
#include "small_decoder.h"
#include "small_transformer.h"

namespace dd2::cpu::DD2_ISA {
namespace {

// The flow of a row's tokens under a network's logits; `logits` and `noise` are the thread's.
FlowSolveParams flow_of(const SmallStudentParams& p, bool guided, long long top_k, float top_p) {
  const SmallTransformer& net = p.student.weights != nullptr ? p.student : p.teacher;
  const int64_t stride = up_to_panel(static_cast<int>(p.vocabulary));
  FlowSolveParams flow{};
  flow.teacher = {nullptr, nullptr, nullptr, stride, guided ? stride : 0, net.tokens, p.vocabulary,
                  top_k, top_p, LogitType::kFloat32};
  flow.codebook = p.codebook;
  flow.draws = 1;
  flow.dim = net.dim;
  flow.steps = p.flow_steps;
  flow.heun = true;
  return flow;
}

// A network's settings, and its codes as the flow reads them.
struct Pass {
  const SmallTransformer& net;
  bool guided;
  float temperature;
  FlowSolveParams flow;
  FlowCodes codes;

  Pass(const SmallStudentParams& p, bool by_teacher, int num_threads)
      : net(by_teacher ? p.teacher : p.student),
        guided(by_teacher && p.scale != 1.0f),
        temperature(by_teacher ? 1.0f : p.temperature),
        flow(flow_of(p, guided, by_teacher ? p.top_k : 0, by_teacher ? p.top_p : 1.0f)),
        codes(flow, num_threads) {}

  int sequences() const { return guided ? 2 : 1; }
};

struct Scratch {
  Buffer<float> noise, embeddings, logits, scale;
  Buffer<long long> before;
  Activations layers;
  FlowScratch student, teacher;

  Scratch(const SmallStudentParams& p, const Pass& first, const Pass& others)
      : noise(allocate<float>(others.flow.teacher.rows * others.flow.dim)),
        embeddings(allocate<float>(others.flow.teacher.rows * others.flow.dim)),
        logits(allocate<float>(2 * others.flow.teacher.rows * others.flow.teacher.logits_stride)),
        scale(allocate<float>(others.flow.teacher.rows)),
        before(allocate<long long>(others.flow.teacher.rows)),
        layers(room(p, first, others)),
        student(first.codes),
        teacher(others.codes) {
    for (int64_t i = 0; i < others.flow.teacher.rows; ++i) scale[i] = p.scale;
  }

  static Room room(const SmallStudentParams& p, const Pass& first, const Pass& others) {
    Room room;
    if (p.student.weights != nullptr) room.transformer(p.student, 1);
    if (p.passes > 0) room.transformer(p.teacher, others.sequences());
    const auto tokens = static_cast<int>(first.flow.teacher.rows);
    const auto dim = static_cast<int>(first.flow.dim);
    if (p.decoder != nullptr) room.decoder(tokens, dim, p.decoder_width);
    return room;
  }
};

// Tokens of `noise` under a network's logits over `input [n][dim]`.
void run(const SmallStudentParams& p, const Pass& pass, int64_t image, const float* input,
         const float* noise, long long* out, FlowScratch& flow_scratch, Scratch& scratch) {
  const SmallTransformer& net = pass.net;
  const int n = net.tokens, rows = pass.sequences() * n;
  const auto vocabulary = static_cast<int>(p.vocabulary);
  const int64_t stride = pass.flow.teacher.logits_stride;
  const long long labels[] = {p.labels[image], net.classes - 1};
  float *y = scratch.layers.y.get(), *logits = scratch.logits.get();
  PackedWeights weights{net.weights};
  transform(net, weights, input, labels, pass.sequences(), scratch.layers);
  normalize(scratch.layers.h.get(), rows, net.width, y);
  apply(weights.layer(net.width, vocabulary), y, net.width, rows, logits, stride);
  if (pass.temperature != 1.0f) {
    map(logits, n * stride, [&](Vec v) { return v / pass.temperature; });
  }
  FlowSolveParams flow = pass.flow;
  flow.teacher.logits = logits;
  flow.teacher.uncond = pass.guided ? logits + n * stride : nullptr;
  flow.teacher.scale = scratch.scale.get();
  flow.noise = noise;
  flow.out = out;
  // Blocks of the same size, as far as there are.
  const int64_t blocks = (n + kQueries - 1) / kQueries;
  for (int64_t b = 0; b < blocks; ++b) {
    solve_rows(flow, pass.codes, b * n / blocks, (b + 1) * n / blocks, pass.codes.filtered,
               flow_scratch);
  }
}

// Codes of tokens; NaN for a token that is none.
DD2_INLINE void embed(const SmallStudentParams& p, const long long* tokens, int64_t count,
                      int64_t dim, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const bool none = tokens[i] < 0;
    for (int64_t c = 0; c < dim; ++c) {
      out[i * dim + c] = none ? quiet_nan() : p.codebook[tokens[i] * dim + c];
    }
  }
}

void draw_image(const SmallStudentParams& p, int64_t image, const Pass& first, const Pass& others,
                Scratch& scratch) {
  const int64_t n = first.flow.teacher.rows, dim = first.flow.dim;
  long long* tokens = p.tokens + image * n;
  const float* noise = p.noise != nullptr ? p.noise + image * n * dim : scratch.noise.get();
  if (p.noise == nullptr) {
    draw_noise(p.seed, p.indices, p.images, image, n * dim, scratch.noise.get());
  }
  if (p.student.weights != nullptr) {
    run(p, first, image, noise, noise, tokens, scratch.student, scratch);
  }
  bool whole = true;
  for (int64_t i = 0; i < n; ++i) whole = whole && tokens[i] >= 0;
  const size_t bytes = static_cast<size_t>(n) * sizeof(long long);
  float* embeddings = scratch.embeddings.get();
  for (int64_t i = 0; i < p.passes && whole; ++i) {
    std::memcpy(scratch.before.get(), tokens, bytes);
    for (int64_t k = 0; k < n; ++k) {
      const int64_t code = tokens[k] > 0 ? tokens[k] : 0;
      std::memcpy(embeddings + k * dim, p.codebook + code * dim, dim * sizeof(float));
    }
    run(p, others, image, embeddings, noise, tokens, scratch.teacher, scratch);
    // What has not changed will not.
    if (std::memcmp(scratch.before.get(), tokens, bytes) == 0) break;
  }
  if (p.decoder == nullptr) return;
  embed(p, tokens, n, dim, embeddings);
  decode(p.decoder, static_cast<int>(n), static_cast<int>(dim), p.decoder_width, embeddings,
         p.pixels + image * 12 * n, scratch.layers);
}

}  // namespace

void launch_small_student(const SmallStudentParams& p, int num_threads) {
  if (p.images <= 0) return;
  const Pass first(p, false, num_threads), others(p, true, num_threads);
  PerThread<Scratch> all_scratch(num_threads, p.images, p, first, others);
#pragma omp parallel num_threads(all_scratch.threads())
  {
    Scratch& scratch = all_scratch.mine();
#pragma omp for schedule(dynamic)
    for (int64_t image = 0; image < p.images; ++image) {
      draw_image(p, image, first, others, scratch);
    }
  }
}

}  // namespace dd2::cpu::DD2_ISA
