// A small generator on NVIDIA GPUs: noise to images in one launch, a block an image. Layer after
// layer goes through one product, whose code stays in the instruction cache; weights come from L2,
// activations stay in shared memory.
#pragma once

#include "dd2/image_noise.cuh"
#include "dd2/small_generator.h"
#include "dd2/small_products.cuh"

namespace dd2 {

// What the network does next: a product, and what becomes of it.
enum class SmallLayer {
  kInput, kQkv, kProjection, kExpand, kContract, kCondition, kHeadInput, kModulation, kHeadExpand,
  kHeadContract, kLastModulation, kOutput, kFirst, kInner, kMix, kUp, kTaps
};

template <bool kShared>
class SmallImage {
 public:
  DD2_DEVICE SmallImage(const SmallGeneratorParams& p, const SmallMemory& lies, float* memory,
                        long long image)
      : p_(p),
        net_(p.network),
        lies_(lies),
        image_(image),
        memory_(memory),
        weights_{p.network.weights} {}

  DD2_DEVICE void run() {
    read_noise();
    const bool generates = net_.weights != nullptr;
    if (generates) {
      weights_.floats(static_cast<long long>(net_.classes) * net_.width);
      weights_.floats(static_cast<long long>(net_.tokens) * net_.width);
    } else {
      __syncthreads();
      start_decoder();
    }
    const int last = generator_steps() + (p_.decoder != nullptr ? 5 : 0);
    DD2_NO_UNROLL
    for (int step = generates ? 0 : generator_steps(); step < last; ++step) {
      const SmallLayer layer = layer_of(step);
      const SmallSums sums = Product(task_of(layer), memory_, lies_.sums, lies_.capacity).run();
      take(layer, sums);
    }
  }

 private:
  using Product = SmallProduct<kShared ? 2 : 1>;

  const SmallGeneratorParams& p_;
  const SmallTransformer& net_;
  const SmallMemory& lies_;
  const long long image_;
  float* memory_;
  PackedWeights weights_;
  int grid_ = 1;

  DD2_DEVICE float* row(int rows, int r) const { return memory_ + rows + r * lies_.row; }
  // A row of q, k and v, four floats longer, so that eight keys lie in different banks.
  DD2_DEVICE int qkv_stride() const { return 3 * net_.width + 4; }
  DD2_DEVICE int hidden_stride() const { return 4 * net_.width + 8; }
  DD2_DEVICE int cell_stride() const { return p_.decoder_width + 8; }

  DD2_DEVICE void read_noise() {
    const int count = net_.tokens * net_.dim, thread = static_cast<int>(threadIdx.x);
    const auto place = [&](int i) { return i / net_.dim * lies_.code + i % net_.dim; };
    DD2_NO_UNROLL
    for (int i = thread; i < lies_.h; i += kSmallThreads) {
      if (i % lies_.code >= net_.dim) memory_[i] = 0.0f;
    }
    DD2_NO_UNROLL
    for (int i = thread; i < lies_.pixel; i += kSmallThreads) memory_[lies_.zeros + i] = 0.0f;
    if (p_.x != nullptr) {
      const float* x = p_.x + image_ * count;
      DD2_NO_UNROLL
      for (int i = thread; i < count; i += kSmallThreads) memory_[place(i)] = x[i];
      return;
    }
    DD2_NO_UNROLL
    for (int i = thread; 4 * i < count; i += kSmallThreads) {
      float normals[4];
      counter_normals(p_.seed, p_.indices[image_], i, kNoiseStream, normals);
      for (int k = 0; k < 4; ++k) {
        if (4 * i + k < count) memory_[place(4 * i + k)] = normals[k];
      }
    }
  }

  // Makes the decoder's input of the embeddings, with zeros up to a multiple of 16.
  DD2_DEVICE void start_decoder() {
    while (grid_ * grid_ < net_.tokens) ++grid_;
    weights_ = {p_.decoder};
    const float *shift = weights_.floats(net_.dim), *scale = weights_.floats(net_.dim);
    each_row(net_.tokens, [&](int r) {
      DD2_NO_UNROLL
      for (int c = lane_index(); c < up_to_panel(net_.dim); c += kWarp) {
        const float* code = memory_ + r * lies_.code + c;
        row(lies_.aside, r)[c] = c < net_.dim ? *code * scale[c] + shift[c] : 0.0f;
      }
    });
  }

  // The product that a layer begins with; moves on in the weights.
  DD2_DEVICE SmallTask task_of(SmallLayer layer) {
    const int n = net_.tokens, dim = net_.dim, width = net_.width, head = p_.head_width;
    const int decoder = p_.decoder_width;
    const auto of = [&](int x, int stride, int inputs, int outputs, int rows, int grid) {
      return SmallTask{weights_.layer(inputs, outputs), x, stride, rows, grid, lies_.zeros};
    };
    const auto of_row = [&](int x, int inputs, int outputs, int grid = 0) {
      return of(x, lies_.row, inputs, outputs, n, grid);
    };
    switch (layer) {
      case SmallLayer::kInput: return of(0, lies_.code, dim, width, n - 1, 0);
      case SmallLayer::kQkv: return of_row(lies_.y, width, 3 * width);
      case SmallLayer::kProjection: return of_row(lies_.y, width, width);
      case SmallLayer::kExpand: return of_row(lies_.y, width, 4 * width);
      case SmallLayer::kContract: return of(lies_.wide, hidden_stride(), 4 * width, width, n, 0);
      case SmallLayer::kCondition: return of_row(lies_.y, width, head);
      case SmallLayer::kHeadInput: return of(0, lies_.code, dim, head, n, 0);
      case SmallLayer::kModulation: return of_row(lies_.aside, head, 3 * head);
      case SmallLayer::kHeadExpand:
      case SmallLayer::kHeadContract: return of_row(lies_.y, head, head);
      case SmallLayer::kLastModulation: return of_row(lies_.aside, head, 2 * head);
      case SmallLayer::kOutput: return of_row(lies_.y, head, dim);
      case SmallLayer::kFirst: return of_row(lies_.aside, 9 * dim, decoder, grid_);
      case SmallLayer::kInner: return of_row(lies_.y, 9 * decoder, decoder, grid_);
      case SmallLayer::kMix: return of_row(lies_.aside, decoder, decoder);
      case SmallLayer::kUp: return of_row(lies_.y, decoder, 4 * decoder);
      default: return of(lies_.wide, cell_stride(), decoder, 9, 4 * n, 0);  // kTaps
    }
  }

  // Of the steps from noise to pixels. By their number, so that the compiler keeps them one loop.
  DD2_DEVICE SmallLayer layer_of(int step) const {
    const auto from = [](SmallLayer layer, int offset) {
      return static_cast<SmallLayer>(static_cast<int>(layer) + offset);
    };
    if (step == 0) return SmallLayer::kInput;
    step -= 1;
    if (step < 4 * net_.layers) return from(SmallLayer::kQkv, step % 4);
    step -= 4 * net_.layers;
    if (step < 2) return from(SmallLayer::kCondition, step);
    step -= 2;
    if (step < 3 * p_.head_blocks) return from(SmallLayer::kModulation, step % 3);
    return from(SmallLayer::kLastModulation, step - 3 * p_.head_blocks);
  }
  DD2_DEVICE int generator_steps() const { return 5 + 4 * net_.layers + 3 * p_.head_blocks; }

  // A row of y is LN(h), with the modulation, which sums have.
  DD2_DEVICE void normalize(int r) const {
    const auto to_y = [&](int i, float4 v) { store4(row(lies_.y, r) + i, v); };
    normalize_row(row(lies_.h, r), net_.width, to_y);
  }
  DD2_DEVICE void modulate(int r, const SmallSums& sums) const {
    const int head = p_.head_width;
    normalize_row(row(lies_.h, r), head, [&](int i, float4 v) {
      store4(row(lies_.y, r) + i, fused_multiply_add(v, sums(r, head + i), sums(r, i)));
    });
  }

  // What becomes of a layer's sums: a warp takes whole rows, a lane the same fours of all of them.
  DD2_DEVICE void take(SmallLayer layer, const SmallSums& sums) {
    const int n = net_.tokens, width = net_.width, head = p_.head_width, decoder = p_.decoder_width;
    const auto set = [&](int rows, int count, auto function) {
      each_row(n, [&](int r) {
        each_four(count, [&](int i) { store4(row(rows, r) + i, each_of(sums(r, i), function)); });
      });
    };
    const auto as_it_is = [](float v) { return v; };
    const auto add_to_h = [&](int r, int count) {
      each_four(count, [&](int i) {
        store4(row(lies_.h, r) + i, load4(row(lies_.h, r) + i) + sums(r, i));
      });
    };
    switch (layer) {
      case SmallLayer::kInput: {
        PackedWeights tables{net_.weights};
        const float* start = tables.floats(static_cast<long long>(net_.classes) * width) +
                             p_.labels[image_] * width;
        const float* positions = tables.floats(static_cast<long long>(n) * width);
        each_row(n, [&](int r) {
          each_four(width, [&](int i) {
            const float4 read = r > 0 ? sums(r - 1, i) : load4(start + i);
            store4(row(lies_.h, r) + i, read + load4(positions + r * width + i));
          });
          normalize(r);
        });
        return;
      }
      case SmallLayer::kQkv:
        each_row(n, [&](int r) {
          float* qkv = memory_ + lies_.wide + r * qkv_stride();
          each_four(3 * width, [&](int i) { store4(qkv + i, sums(r, i)); });
        });
        __syncthreads();
        attend();
        return;
      case SmallLayer::kProjection:
      case SmallLayer::kContract:
        each_row(n, [&](int r) {
          add_to_h(r, width);
          normalize(r);
        });
        return;
      case SmallLayer::kExpand:
        each_row(n, [&](int r) {
          each_four(4 * width, [&](int i) {
            store4(memory_ + lies_.wide + r * hidden_stride() + i, each_of(sums(r, i), gelu_tanh));
          });
        });
        return;
      case SmallLayer::kCondition: return set(lies_.aside, head, silu);
      case SmallLayer::kHeadInput: return set(lies_.h, head, as_it_is);
      case SmallLayer::kModulation:
        each_row(n, [&](int r) {
          modulate(r, sums);
          each_four(head, [&](int i) { store4(row(lies_.wide, r) + i, sums(r, 2 * head + i)); });
        });
        return;
      case SmallLayer::kHeadExpand: return set(lies_.y, head, silu);
      case SmallLayer::kHeadContract:
        each_row(n, [&](int r) {
          each_four(head, [&](int i) {
            const float4 gate = load4(row(lies_.wide, r) + i), old = load4(row(lies_.h, r) + i);
            store4(row(lies_.h, r) + i, fused_multiply_add(gate, sums(r, i), old));
          });
        });
        return;
      case SmallLayer::kLastModulation:
        each_row(n, [&](int r) { modulate(r, sums); });
        return;
      case SmallLayer::kOutput:
        each_row(n, [&](int r) { make_codes(r, sums); });
        if (p_.decoder != nullptr) start_decoder();
        return;
      case SmallLayer::kFirst:
        each_row(n, [&](int r) {
          each_four(decoder, [&](int i) {
            store4(row(lies_.h, r) + i, sums(r, i));
            store4(row(lies_.y, r) + i, each_of(sums(r, i), gelu_erf));
          });
        });
        return;
      case SmallLayer::kInner: return set(lies_.aside, decoder, gelu_erf);
      case SmallLayer::kMix:
        each_row(n, [&](int r) {
          add_to_h(r, decoder);
          each_four(decoder, [&](int i) {
            store4(row(lies_.y, r) + i, each_of(load4(row(lies_.h, r) + i), gelu_erf));
          });
        });
        return;
      case SmallLayer::kUp:
        each_row(n, [&](int r) {
          each_four(4 * decoder, [&](int i) {
            const int cell = (i >= decoder) + (i >= 2 * decoder) + (i >= 3 * decoder);
            float* at = memory_ + lies_.wide + (4 * r + cell) * cell_stride() + i - cell * decoder;
            store4(at, each_of(sums(r, i), gelu_erf));
          });
        });
        return;
      default:  // kTaps
        each_row(4 * n, [&](int cell) {
          DD2_NO_UNROLL
          for (int tap = lane_index(); tap < 9; tap += kWarp) {
            memory_[lies_.y + tap * 4 * n + cell] = sums.one(cell, tap);
          }
        });
        __syncthreads();
        write_pixels(weights_.floats(1));
    }
  }

  // Causal attention over wide [tokens][3 width], to y: a warp takes a head's query, its lanes the
  // keys, then the channels.
  DD2_DEVICE void attend() const {
    const int size = net_.width / net_.heads, stride = qkv_stride(), lane = lane_index();
    // Heads of 16 channels leave a half of the lanes to every second key.
    const int channels = size < kWarp ? size : kWarp, halves = kWarp / channels;
    DD2_NO_UNROLL
    for (int pair = warp_index(); pair < net_.tokens * net_.heads; pair += kSmallWarps) {
      const int query = pair / net_.heads, offset = pair % net_.heads * size;
      const float* first_q = memory_ + lies_.wide + offset;
      const float *q = first_q + query * stride, *k = first_q + net_.width, *v = k + net_.width;
      float score[2];  // of 64 tokens at most
      for (int i = 0; i < 2; ++i) {
        const int key = lane + i * kWarp;
        score[i] = negative_infinity();
        if (key > query) continue;
        float4 sum = make_float4(0, 0, 0, 0);
        DD2_UNROLL(4)
        for (int c = 0; c < size; c += 4) {
          sum = fused_multiply_add(load4(q + c), load4(k + key * stride + c), sum);
        }
        score[i] = (sum.x + sum.y) + (sum.z + sum.w);
      }
      const float most = warp_reduce(fmaxf(score[0], score[1]), FloatMax());
      for (float& s : score) s = exp2f((s - most) * kLog2E);
      const float rate = __fdividef(1.0f, warp_reduce(score[0] + score[1], Add()));
      DD2_NO_UNROLL
      for (int first = 0; first < size; first += channels) {
        const int c = first + lane % channels;
        float mixed = 0.0f;
        for (int i = 0; i < 2; ++i) {
          DD2_UNROLL(4)
          for (int j = 0; j < kWarp && i * kWarp + j <= query; j += halves) {
            const int from = j + lane / channels, key = i * kWarp + from;
            const float mass = __shfl_sync(kAllLanes, score[i], from);
            if (key > query || c >= size) continue;
            mixed = fused_multiply_add(mass, v[key * stride + c], mixed);
          }
        }
        if (halves == 2) mixed += __shfl_xor_sync(kAllLanes, mixed, 16);
        if (lane < channels && c < size) row(lies_.y, query)[offset + c] = mixed * rate;
      }
    }
  }

  // Embeddings x = noise - velocity, which take the place of the noise.
  DD2_DEVICE void make_codes(int r, const SmallSums& sums) const {
    DD2_NO_UNROLL
    for (int c = lane_index(); c < net_.dim; c += kWarp) {
      float& code = memory_[r * lies_.code + c];
      code -= sums.one(r, c);
      if (p_.embeddings != nullptr) {
        p_.embeddings[(image_ * net_.tokens + r) * net_.dim + c] = code;
      }
    }
  }

  // Gray values from nine taps of every cell around, [9][4 tokens] in y, in three colours.
  DD2_DEVICE void write_pixels(const float* bias) const {
    const int side = 2 * grid_;
    float* out = p_.pixels + image_ * 3 * side * side;
    DD2_NO_UNROLL
    for (int i = static_cast<int>(threadIdx.x); i < side * side; i += kSmallThreads) {
      float sum = *bias;
      DD2_NO_UNROLL
      for (int tap = 0; tap < 9; ++tap) {
        const int from = i / side + tap / 3 - 1, at = i % side + tap % 3 - 1;
        if (from < 0 || from >= side || at < 0 || at >= side) continue;
        const int cell = (from / 2 * grid_ + at / 2) * 4 + from % 2 * 2 + at % 2;
        sum += memory_[lies_.y + tap * 4 * net_.tokens + cell];
      }
      const float gray = fused_multiply_add(sum, 0.5f, 0.5f);
      const float clamped = gray < 0.0f ? 0.0f : gray > 1.0f ? 1.0f : gray;
      const float value = sum - sum == 0.0f ? clamped : quiet_nan();
      for (int colour = 0; colour < 3; ++colour) out[colour * side * side + i] = value;
    }
  }
};

// grid (images), or fewer blocks with a workspace; kShared: activations are in shared memory.
template <bool kShared>
__global__ void __launch_bounds__(kSmallThreads)
    small_generator_fwd_kernel(const SmallGeneratorParams p) {
  DD2_DYNAMIC_SHARED(float, shared);
  // In shared memory: what the compiler makes of sizes would stay in registers through all layers.
  __shared__ SmallGeneratorParams params;
  __shared__ SmallMemory lies;
  if (threadIdx.x == 0) {
    params = p;
    lies = SmallMemory(p);
  }
  __syncthreads();
  for (long long image = blockIdx.x; image < p.images; image += gridDim.x) {
    float* memory = kShared ? shared : p.workspace + blockIdx.x * lies.floats();
    SmallImage<kShared>(params, lies, memory, image).run();
    __syncthreads();
  }
}

}  // namespace dd2
