// Single and double precision, and halves.
#include <cfenv>
#include <cmath>

#include "halves.h"
#include "map.h"

namespace ptxrun {
namespace {

// min and max: a NaN loses unless asked for, and -0 < 0.
template <typename T>
T smaller(T a, T b) {
  return a < b || (a == b && std::signbit(a)) || b != b ? a : b;
}
template <typename T>
T larger(T a, T b) {
  return a > b || (a == b && !std::signbit(a)) || b != b ? a : b;
}

template <typename T, bool kFlush>
T tidy(T x) {
  if constexpr (kFlush) x = flush(x);
  return x;
}

double exp2_of(float x) {
  if (!(x > -160.0f)) return x != x ? x : 0.0;
  if (x > 160.0f) return std::numeric_limits<double>::infinity();
  const double whole = std::nearbyint(static_cast<double>(x)),
               f = (x - whole) * 0.693147180559945309;
  const double e =
      1 +
      f * (1 + f * (1 / 2.0 +
                    f * (1 / 6.0 +
                         f * (1 / 24.0 + f * (1 / 120.0 +
                                              f * (1 / 720.0 + f * (1 / 5040.0 + f / 40320.0)))))));
  u64 bits = static_cast<u64>(static_cast<s64>(whole) + 1023) << 52;
  double scale;
  std::memcpy(&scale, &bits, 8);
  return e * scale;
}

// Rounding other than to nearest, through the CPU's rounding mode.
template <typename T, bool kFlush, int kMode>
void directed_ops(Registry& r, const std::string& t) {
  const auto rounded = [](auto function) {
    const int before = std::fegetround();
    std::fesetround(kMode);
    volatile T result = function();
    std::fesetround(before);
    return tidy<T, kFlush>(result);
  };
#define D2(NAME, E)                                            \
  op<T, T, T>(r, NAME "." + t, [=](T x, T y) {                 \
    volatile T a = tidy<T, kFlush>(x), b = tidy<T, kFlush>(y); \
    return rounded([&] { return E; });                         \
  })
#define D1(NAME, E)                    \
  op<T, T>(r, NAME "." + t, [=](T x) { \
    volatile T a = tidy<T, kFlush>(x); \
    return rounded([&] { return E; }); \
  })
  D2("add", a + b);
  D2("sub", a - b);
  D2("mul", a * b);
  D2("div", a / b);
  D1("sqrt", std::sqrt(a));
  D1("rcp", T(1) / a);
  op<T, T, T, T>(r, "fma." + t, [=](T x, T y, T z) {
    volatile T a = tidy<T, kFlush>(x), b = tidy<T, kFlush>(y), c = tidy<T, kFlush>(z);
    return rounded([&] { return std::fma(a, b, c); });
  });
}

template <typename T, bool kFlush>
void float_ops(Registry& r, const std::string& t) {
#define F1(NAME, E)                            \
  op<T, T>(r, NAME "." + t, [](T a) {          \
    a = tidy<T, kFlush>(a);                    \
    return tidy<T, kFlush>(static_cast<T>(E)); \
  })
#define F2(NAME, E)                            \
  op<T, T, T>(r, NAME "." + t, [](T a, T b) {  \
    a = tidy<T, kFlush>(a);                    \
    b = tidy<T, kFlush>(b);                    \
    return tidy<T, kFlush>(static_cast<T>(E)); \
  })
#define F3(NAME, E)                                   \
  op<T, T, T, T>(r, NAME "." + t, [](T a, T b, T c) { \
    a = tidy<T, kFlush>(a);                           \
    b = tidy<T, kFlush>(b);                           \
    c = tidy<T, kFlush>(c);                           \
    return tidy<T, kFlush>(static_cast<T>(E));        \
  })
  F2("add", a + b);
  F2("sub", a - b);
  F2("mul", a * b);
  F2("div", a / b);
  F3("fma", std::fma(a, b, c));
  F2("min", smaller(a, b));
  F2("max", larger(a, b));
  F2("min.nan", a != a || b != b ? std::numeric_limits<T>::quiet_NaN() : smaller(a, b));
  F2("max.nan", a != a || b != b ? std::numeric_limits<T>::quiet_NaN() : larger(a, b));
  F3("min3", smaller(smaller(a, b), c));
  F3("max3", larger(larger(a, b), c));
  F1("neg", -a);
  F1("abs", std::fabs(a));
  F1("sqrt", std::sqrt(a));
  F1("rcp", T(1) / a);
  F1("rsqrt", 1.0 / std::sqrt(static_cast<double>(a)));
  if constexpr (sizeof(T) == 4) {
    F1("ex2", exp2_of(a));
    F1("lg2", std::log2(static_cast<double>(a)));
    F1("sin", std::sin(static_cast<double>(a)));
    F1("cos", std::cos(static_cast<double>(a)));
    F1("tanh", std::tanh(static_cast<double>(a)));
  }
  F2("copysign", std::copysign(b, a));
  op<u32, T>(r, "testp.nan." + t, [](T a) -> u32 { return a != a; });
#define FCMP(NAME, E)                                             \
  r.add("setp." NAME "." + t, [](Warp& w, const Inst& i, u32 m) { \
    set_predicate<T>(w, i, m, [](T x, T y) -> bool {              \
      const T a = tidy<T, kFlush>(x), b = tidy<T, kFlush>(y);     \
      return E;                                                   \
    });                                                           \
  })
  FCMP("eq", a == b);
  FCMP("ne", a < b || a > b);
  FCMP("lt", a < b);
  FCMP("le", a <= b);
  FCMP("gt", a > b);
  FCMP("ge", a >= b);
  FCMP("equ", !(a < b || a > b));
  FCMP("neu", !(a == b));
  FCMP("ltu", !(a >= b));
  FCMP("leu", !(a > b));
  FCMP("gtu", !(a <= b));
  FCMP("geu", !(a < b));
  FCMP("num", a == a && b == b);
  FCMP("nan", a != a || b != b);
}

template <typename H>
void half_ops(Registry& r, const std::string& t) {
  using P = Pair<H>;
#define H1(NAME, E)                          \
  op<H, H>(r, NAME "." + t, [](H x) {        \
    const double a = to_float(x);            \
    return half_of(E, H{});                  \
  });                                        \
  op<P, P>(r, NAME "." + t + "x2", [](P x) { \
    auto f = [](H x) {                       \
      const double a = to_float(x);          \
      return half_of(E, H{});                \
    };                                       \
    return P{f(x.low), f(x.high)};           \
  })
#define H2(NAME, E)                                  \
  op<H, H, H>(r, NAME "." + t, [](H x, H y) {        \
    const double a = to_float(x), b = to_float(y);   \
    return half_of(E, H{});                          \
  });                                                \
  op<P, P, P>(r, NAME "." + t + "x2", [](P x, P y) { \
    auto f = [](H x, H y) {                          \
      const double a = to_float(x), b = to_float(y); \
      return half_of(E, H{});                        \
    };                                               \
    return P{f(x.low, y.low), f(x.high, y.high)};    \
  })
  H2("add", a + b);
  H2("sub", a - b);
  H2("mul", a * b);
  H2("min", smaller(a, b));
  H2("max", larger(a, b));
  H2("min.nan", a != a || b != b ? NAN : smaller(a, b));
  H2("max.nan", a != a || b != b ? NAN : larger(a, b));
  H1("neg", -a);
  H1("abs", std::fabs(a));
  H1("ex2", std::exp2(a));
  H1("tanh", std::tanh(a));
  op<H, H, H, H>(r, "fma." + t, [](H x, H y, H z) {
    return half_of(std::fma(static_cast<double>(to_float(x)), to_float(y), to_float(z)), H{});
  });
  op<P, P, P, P>(r, "fma." + t + "x2", [](P x, P y, P z) {
    auto f = [](H x, H y, H z) {
      return half_of(std::fma(static_cast<double>(to_float(x)), to_float(y), to_float(z)), H{});
    };
    return P{f(x.low, y.low, z.low), f(x.high, y.high, z.high)};
  });
#define HCMP(NAME, E)                                             \
  r.add("setp." NAME "." + t, [](Warp& w, const Inst& i, u32 m) { \
    set_predicate<H>(w, i, m, [](H x, H y) -> bool {              \
      const float a = to_float(x), b = to_float(y);               \
      return E;                                                   \
    });                                                           \
  })
#define HCMP2(NAME, E)                                                  \
  r.add("setp2." NAME "." + t, [](Warp& w, const Inst& i, u32 m) {      \
    auto f = [](H x, H y) -> bool {                                     \
      const float a = to_float(x), b = to_float(y);                     \
      return E;                                                         \
    };                                                                  \
    const P *x = w.row<P>(i.o[2]), *y = w.row<P>(i.o[3]);               \
    each(m, [&](int l) {                                                \
      const u32 bit = 1u << l, low = f(x[l].low, y[l].low) << l,        \
                high = f(x[l].high, y[l].high) << l;                    \
      if (i.o[0] >= 0) w.pred(i.o[0]) = (w.pred(i.o[0]) & ~bit) | low;  \
      if (i.o[1] >= 0) w.pred(i.o[1]) = (w.pred(i.o[1]) & ~bit) | high; \
    });                                                                 \
  })
  HCMP2("eq", a == b);
  HCMP2("ne", a < b || a > b);
  HCMP2("lt", a < b);
  HCMP2("le", a <= b);
  HCMP2("gt", a > b);
  HCMP2("ge", a >= b);
  HCMP2("neu", !(a == b));
  HCMP2("nan", a != a || b != b);
  HCMP("eq", a == b);
  HCMP("ne", a < b || a > b);
  HCMP("lt", a < b);
  HCMP("le", a <= b);
  HCMP("gt", a > b);
  HCMP("ge", a >= b);
  HCMP("equ", !(a < b || a > b));
  HCMP("neu", !(a == b));
  HCMP("ltu", !(a >= b));
  HCMP("leu", !(a > b));
  HCMP("gtu", !(a <= b));
  HCMP("geu", !(a < b));
  HCMP("num", a == a && b == b);
  HCMP("nan", a != a || b != b);
}

Register floats([](Registry& r) {
  directed_ops<float, false, FE_TOWARDZERO>(r, "rz.f32");
  directed_ops<float, false, FE_DOWNWARD>(r, "rm.f32");
  directed_ops<float, false, FE_UPWARD>(r, "rp.f32");
  directed_ops<float, true, FE_TOWARDZERO>(r, "rz.ftz.f32");
  float_ops<float, false>(r, "f32");
  float_ops<float, true>(r, "ftz.f32");
  float_ops<double, false>(r, "f64");
  half_ops<f16>(r, "f16");
  half_ops<bf16>(r, "bf16");
});

}  // namespace
}  // namespace ptxrun
