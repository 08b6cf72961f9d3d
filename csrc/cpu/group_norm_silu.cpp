// Group norm of maps with their channels last, on CPUs: each channel's mean and squares about it in
// chunks of pixels that stay in cache, put together by groups, then applied.

#include "dd2/group_norm_silu.h"

#include <cmath>
#include <type_traits>

#include "dispatch.h"
#include "memory.h"
#include "simd.h"

namespace dd2::cpu::DD2_ISA {
namespace {

constexpr int64_t kChunkValues = 1 << 14;
constexpr int64_t kParallelValues = 1 << 15;  // fewer are no work for a second thread

// `count` values, at most kLanes, the others 0.
template <typename T>
DD2_INLINE Vec load_some(const T* source, int64_t count) {
  if (count == kLanes) return load(source);
  T values[kLanes] = {};
  std::memcpy(values, source, static_cast<size_t>(count) * sizeof(T));
  return load(values);
}

template <typename T>
DD2_INLINE void store_some(T* target, int64_t count, Vec v) {
  if (count == kLanes) return store(target, v);
  T values[kLanes];
  store(values, v);
  std::memcpy(target, values, static_cast<size_t>(count) * sizeof(T));
}

// use(c, how many) for the channels, a vector at a time.
template <typename Use>
DD2_INLINE void each_vector(int64_t channels, const Use& use) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) use(c, kLanes);
  if (c < channels) use(c, channels - c);
}

constexpr int64_t kTogether = 4;  // pixels
constexpr int64_t kAhead = 1024;  // values to fetch ahead: processors stop at the end of a page

template <typename T>
class Image {
 public:
  // What a channel needs: floats of whole vectors.
  struct Scratch {
    int64_t padded;
    Buffer<float> partial;  // [chunks, 2, padded]: means, and sums of squares about them
    Buffer<float> gain;     // [padded]
    Buffer<float> shift;
    Buffer<float> added;  // pre_bias or zeros
    Buffer<float> pivot;  // [threads, padded]

    Scratch(int64_t chunks, int64_t channels, int64_t threads)
        : padded(round_up(channels, kLanes)),
          partial(allocate<float>(chunks * 2 * padded)),
          gain(allocate<float>(padded)),
          shift(allocate<float>(padded)),
          added(allocate<float>(padded)),
          pivot(allocate<float>(threads * padded)) {}

    // The calling thread's.
    float* own_pivot() {
#if defined(_OPENMP)
      return pivot.get() + omp_get_thread_num() * padded;
#else
      return pivot.get();
#endif
    }
  };

  static int64_t chunk_pixels(const GroupNormSiluParams& p) {
    const int64_t pixels = kChunkValues / p.channels;
    return pixels < 4 ? 4 : pixels;
  }

  Image(const GroupNormSiluParams& p, Scratch& scratch, int64_t image)
      : p_(p),
        scratch_(scratch),
        x_(static_cast<const T*>(p.x) + image * p.pixels * p.channels),
        residual_(static_cast<const T*>(p.residual) + image * p.pixels * p.channels),
        sum_(static_cast<T*>(p.sum) + image * p.pixels * p.channels),
        y_(static_cast<T*>(p.y) + image * p.pixels * p.channels) {}

  // The mean of every channel in a chunk, and the sum of squares about it: of differences to the
  // mean of the first pixels, so that no more than a few bits cancel.
  template <bool kResidual>
  DD2_NOINLINE void measure(int64_t chunk) const {
    const int64_t first = chunk * chunk_pixels(p_), pixels = pixels_of(chunk), stride = p_.channels;
    float* mean = scratch_.partial.get() + chunk * 2 * scratch_.padded;
    float *square = mean + scratch_.padded, *pivot = scratch_.own_pivot();
    const int64_t few = pixels < kTogether ? pixels : kTogether;
    each_vector(stride, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
      Vec sum{};
      for (int64_t p = 0; p < few; ++p) sum += value<kResidual, false>((first + p) * stride + c, c, n);
      store(pivot + c, sum / static_cast<float>(few));
      store(mean + c, Vec{});
      store(square + c, Vec{});
    });
    int64_t p = 0;
    for (; p + kTogether <= pixels; p += kTogether) {
      each_vector(stride, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
        Vec v[kTogether];
        for (int64_t i = 0; i < kTogether; ++i) {
          v[i] = value<kResidual, true>((first + p + i) * stride + c, c, n) - load(pivot + c);
        }
        store(mean + c, load(mean + c) + ((v[0] + v[1]) + (v[2] + v[3])));
        store(square + c, load(square + c) + ((v[0] * v[0] + v[1] * v[1]) + (v[2] * v[2] + v[3] * v[3])));
      });
    }
    for (; p < pixels; ++p) {
      each_vector(stride, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
        const Vec v = value<kResidual, true>((first + p) * stride + c, c, n) - load(pivot + c);
        store(mean + c, load(mean + c) + v);
        store(square + c, load(square + c) + v * v);
      });
    }
    const float share = 1.0f / static_cast<float>(pixels);
    each_vector(stride, [&](int64_t c, int64_t) __attribute__((always_inline)) {
      const Vec sum = load(mean + c), least = load(square + c) - sum * sum * share;
      store(square + c, max(Vec{}, least));
      store(mean + c, load(pivot + c) + sum * share);
    });
  }

  // The gains and shifts of a group's channels.
  void merge(int64_t group, int64_t chunks) const {
    const int64_t size = p_.channels / p_.groups, first = group * size;
    const bool shifted = p_.residual == nullptr && p_.pre_bias != nullptr;
    const double count = static_cast<double>(p_.pixels) * static_cast<double>(size);
    const auto total = [&](const auto& of) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const float* mean = scratch_.partial.get() + chunk * 2 * scratch_.padded;
        const double pixels = static_cast<double>(pixels_of(chunk));
        for (int64_t c = first; c < first + size; ++c) {
          const double own = shifted ? static_cast<double>(mean[c]) + p_.pre_bias[c] : mean[c];
          sum += of(own, static_cast<double>(mean[c + scratch_.padded]), pixels);
        }
      }
      return sum / count;
    };
    const double mean = total([](double own, double, double pixels) { return own * pixels; });
    const double variance = total([=](double own, double square, double pixels) {
      return square + pixels * (own - mean) * (own - mean);
    });
    const double rate = 1 / std::sqrt(variance + static_cast<double>(p_.eps));
    for (int64_t c = first; c < first + size; ++c) {
      const double gain = rate * p_.weight[c], offset = shifted ? p_.pre_bias[c] - mean : -mean;
      scratch_.gain.get()[c] = static_cast<float>(gain);
      scratch_.shift.get()[c] = static_cast<float>(p_.bias[c] + offset * gain);
    }
  }

  template <bool kSilu>
  DD2_NOINLINE void apply(int64_t chunk) const {
    const int64_t first = chunk * chunk_pixels(p_) * p_.channels;
    const float *gain = scratch_.gain.get(), *shift = scratch_.shift.get();
    const T* of = p_.residual != nullptr ? sum_ : x_;
    for (int64_t p = 0; p < pixels_of(chunk); ++p) {
      const T* x = of + first + p * p_.channels;
      T* y = y_ + first + p * p_.channels;
      each_vector(p_.channels, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
        __builtin_prefetch(x + c + kAhead);
        const Vec v = load_some(x + c, n) * load(gain + c) + load(shift + c);
        store_some(y + c, n, kSilu ? silu(v) : v);
      });
    }
  }

 private:
  int64_t pixels_of(int64_t chunk) const {
    const int64_t most = chunk_pixels(p_), left = p_.pixels - chunk * most;
    return left < most ? left : most;
  }

  // Values of the image from `at` on, of channels c, ...; with a residual written as the sum, too.
  template <bool kResidual, bool kWrites>
  DD2_INLINE Vec value(int64_t at, int64_t c, int64_t n) const {
    __builtin_prefetch(x_ + at + kAhead);
    if constexpr (kResidual) __builtin_prefetch(residual_ + at + kAhead);
    const Vec x = load_some(x_ + at, n);
    if constexpr (!kResidual) return x;
    const Vec sum = x + load(scratch_.added.get() + c) + load_some(residual_ + at, n);
    if constexpr (!kWrites) return sum;
    store_some(sum_ + at, n, sum);
    return std::is_same_v<T, float> ? sum : load_some(sum_ + at, n);
  }

  const GroupNormSiluParams& p_;
  Scratch& scratch_;
  const T *const x_, *const residual_;
  T *const sum_, *const y_;
};

template <typename T>
void run(const GroupNormSiluParams& p, int num_threads) {
  const int64_t pixels = Image<T>::chunk_pixels(p), chunks = (p.pixels + pixels - 1) / pixels;
  typename Image<T>::Scratch scratch(chunks, p.channels, num_threads);
  for (int64_t c = 0; c < scratch.padded; ++c) {
    scratch.added.get()[c] = p.pre_bias != nullptr && c < p.channels ? p.pre_bias[c] : 0.0f;
    scratch.gain.get()[c] = scratch.shift.get()[c] = 0.0f;
  }
#pragma omp parallel num_threads(num_threads) if (p.pixels * p.channels >= kParallelValues)
  for (int64_t i = 0; i < p.images; ++i) {
    const Image<T> image(p, scratch, i);
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      if (p.residual != nullptr) {
        image.template measure<true>(chunk);
      } else {
        image.template measure<false>(chunk);
      }
    }
#pragma omp for schedule(static)
    for (int64_t group = 0; group < p.groups; ++group) image.merge(group, chunks);
    // Backwards: the last chunks may still be in cache.
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      if (p.silu) {
        image.template apply<true>(chunks - 1 - chunk);
      } else {
        image.template apply<false>(chunks - 1 - chunk);
      }
    }
  }
}

}  // namespace

void launch_group_norm_silu(const GroupNormSiluParams& p, int num_threads) {
  if (p.images <= 0 || p.pixels <= 0 || p.channels <= 0) return;
  switch (p.type) {
    case LogitType::kFloat32: return run<float>(p, num_threads);
    case LogitType::kBFloat16: return run<BFloat16>(p, num_threads);
    default: return run<Float16>(p, num_threads);
  }
}

}  // namespace dd2::cpu::DD2_ISA
