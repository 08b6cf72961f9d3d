// cvt.<to>.<from>; rounding, .ftz and .sat are in the instruction.
#include <cfenv>
#include <cmath>

#include "halves.h"
#include "map.h"

namespace ptxrun {
namespace {

template <typename T>
constexpr bool kFloating = !std::is_integral_v<T>;

double round_whole(double x, u8 mode) {
  switch (mode) {
    case kZero:
      return std::trunc(x);
    case kDown:
      return std::floor(x);
    case kUp:
      return std::ceil(x);
    case kAway:
      return std::round(x);
    default:
      return std::nearbyint(x);
  }
}

int cpu_mode(u8 mode) {
  return mode == kZero   ? FE_TOWARDZERO
         : mode == kDown ? FE_DOWNWARD
         : mode == kUp   ? FE_UPWARD
                         : FE_TONEAREST;
}

template <typename D>
D narrow(double x, u8 mode) {
  if constexpr (std::is_same_v<D, double>) {
    return x;
  } else if constexpr (std::is_same_v<D, float>) {
    if (mode == kNearest) return static_cast<float>(x);
    const int before = std::fegetround();
    std::fesetround(cpu_mode(mode));
    volatile double from = x;
    volatile float y = static_cast<float>(from);
    std::fesetround(before);
    return y;
  } else {
    const D y = half_of(x, D{});
    if (mode == kNearest || to_float(y) == x || x != x) return y;
    // Towards zero, or outwards, from the nearest.
    u16 bits;
    std::memcpy(&bits, &y, 2);
    const bool outside = std::fabs(to_float(y)) > std::fabs(x), negative = std::signbit(x);
    const bool inwards = mode == kZero || (mode == kDown && !negative) || (mode == kUp && negative);
    if (outside && inwards) --bits;
    if (!outside && !inwards) ++bits;
    D z;
    std::memcpy(&z, &bits, 2);
    return z;
  }
}

template <typename D, typename S>
void convert(Warp& w, const Inst& i, u32 m) {
  const u8 mode = i.round, flags = i.flags;
  if constexpr (std::is_integral_v<D> && std::is_integral_v<S>) {
    if (flags & kSat) {
      map<D, S>(w, i, m, [](S x) -> D {
        const __int128 low = std::numeric_limits<D>::min(), high = std::numeric_limits<D>::max(),
                       v = x;
        return static_cast<D>(v < low ? low : v > high ? high : v);
      });
    } else {
      map<D, S>(w, i, m, [](S x) { return static_cast<D>(x); });
    }
  } else if constexpr (std::is_integral_v<D>) {
    map<D, S>(w, i, m, [=](S from) -> D {
      double x = to_float(from);
      if constexpr (std::is_same_v<S, float>)
        if (flags & kFtz) x = flush(from);
      if (x != x) return sizeof(D) == 8 ? static_cast<D>(1ull << 63) : D{};
      x = round_whole(x, mode);
      if (x <= static_cast<double>(std::numeric_limits<D>::min()))
        return std::numeric_limits<D>::min();
      if (x >= static_cast<double>(std::numeric_limits<D>::max()))
        return std::numeric_limits<D>::max();
      return static_cast<D>(x);
    });
  } else if constexpr (std::is_integral_v<S>) {
    map<D, S>(w, i, m, [=](S x) -> D {
      if constexpr (std::is_same_v<D, float> || std::is_same_v<D, double>) {
        if (mode == kNearest) return static_cast<D>(x);
        const int before = std::fegetround();
        std::fesetround(cpu_mode(mode));
        volatile S from = x;
        volatile D y = static_cast<D>(from);
        std::fesetround(before);
        return y;
      } else {
        return narrow<D>(static_cast<double>(x), mode);
      }
    });
  } else if constexpr (std::is_same_v<D, f16> && std::is_same_v<S, float>) {
    if (mode == kNearest && !(flags & (kSat | kFtz)))
      map<D, S>(w, i, m, [](float x) { return static_cast<f16>(x); });
    else
      map<D, S>(w, i, m, [=](float x) {
        if (flags & kSat) x = x > 1 ? 1 : x > 0 ? x : 0;
        return narrow<f16>(x, mode);
      });
  } else {
    // `imm`: round to a whole number, for conversions to the same type.
    const bool whole = i.imm;
    map<D, S>(w, i, m, [=](S from) -> D {
      double x = to_float(from);
      if constexpr (std::is_same_v<S, float>)
        if (flags & kFtz) x = flush(from);
      if (whole) x = round_whole(x, mode);
      if (flags & kSat) x = x > 1 ? 1 : x > 0 ? x : 0;
      D y = narrow<D>(x, whole ? u8{kNearest} : mode);
      if constexpr (std::is_same_v<D, float>)
        if (flags & kFtz) y = flush(y);
      return y;
    });
  }
}

template <typename D, typename S>
void add_conversion(Registry& r, const char* d, const char* s) {
  r.add(std::string("cvt.") + d + "." + s, convert<D, S>);
}
template <typename D>
void add_conversions(Registry& r, const char* d) {
  add_conversion<D, u8>(r, d, "u8");
  add_conversion<D, s8>(r, d, "s8");
  add_conversion<D, u16>(r, d, "u16");
  add_conversion<D, s16>(r, d, "s16");
  add_conversion<D, u32>(r, d, "u32");
  add_conversion<D, s32>(r, d, "s32");
  add_conversion<D, u64>(r, d, "u64");
  add_conversion<D, s64>(r, d, "s64");
  add_conversion<D, f16>(r, d, "f16");
  add_conversion<D, bf16>(r, d, "bf16");
  add_conversion<D, float>(r, d, "f32");
  add_conversion<D, double>(r, d, "f64");
}

template <typename H>
void pair_conversion(Registry& r, const std::string& t) {  // d, a, b: a goes high
  r.add("cvt." + t + "x2.f32", [](Warp& w, const Inst& i, u32 m) {
    const u8 mode = i.round, flags = i.flags;
    map<Pair<H>, float, float>(w, i, m, [=](float a, float b) {
      if (flags & kWide) a = a > 0 ? a : 0, b = b > 0 ? b : 0;  // .relu
      return Pair<H>{narrow<H>(b, mode), narrow<H>(a, mode)};
    });
  });
}

Register conversions([](Registry& r) {
  add_conversions<u8>(r, "u8");
  add_conversions<s8>(r, "s8");
  add_conversions<u16>(r, "u16");
  add_conversions<s16>(r, "s16");
  add_conversions<u32>(r, "u32");
  add_conversions<s32>(r, "s32");
  add_conversions<u64>(r, "u64");
  add_conversions<s64>(r, "s64");
  add_conversions<f16>(r, "f16");
  add_conversions<bf16>(r, "bf16");
  add_conversions<float>(r, "f32");
  add_conversions<double>(r, "f64");
  pair_conversion<f16>(r, "f16");
  pair_conversion<bf16>(r, "bf16");
  op<u32, float>(r, "cvt.tf32.f32", [](float x) {
    return x != x ? 0x7fffffffu : (bits_of(x) + 0x1000) & 0xffffe000u;
  });
});

}  // namespace
}  // namespace ptxrun
