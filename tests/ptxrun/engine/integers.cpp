// Whole numbers, bits and predicates.
#include "map.h"

namespace ptxrun {
namespace {

template <typename T>
using Unsigned = std::make_unsigned_t<T>;

template <typename T>
struct Wide;
template <>
struct Wide<u8> {
  using type = u16;
};
template <>
struct Wide<u16> {
  using type = u32;
};
template <>
struct Wide<s16> {
  using type = s32;
};
template <>
struct Wide<u32> {
  using type = u64;
};
template <>
struct Wide<s32> {
  using type = s64;
};
template <>
struct Wide<u64> {
  using type = unsigned __int128;
};
template <>
struct Wide<s64> {
  using type = __int128;
};

template <typename T>
void integer_ops(Registry& r, const std::string& t) {
  using U = Unsigned<T>;
  using W = typename Wide<T>::type;
  constexpr int kBits = 8 * sizeof(T);
  op<T, T, T>(r, "min." + t, [](T a, T b) { return a < b ? a : b; });
  op<T, T, T>(r, "max." + t, [](T a, T b) { return a > b ? a : b; });
  op<T, T, T>(r, "div." + t, [](T a, T b) -> T {
    if (b == 0) return static_cast<T>(~T{});
    if (std::is_signed_v<T> && b == static_cast<T>(-1))
      return static_cast<T>(U{} - static_cast<U>(a));
    return a / b;
  });
  op<T, T, T>(r, "rem." + t, [](T a, T b) -> T {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return a % b;
  });
  op<T, T, T>(r, "mul.hi." + t,
              [](T a, T b) { return static_cast<T>((static_cast<W>(a) * b) >> kBits); });
  op<T, T, T, T>(r, "mad.hi." + t, [](T a, T b, T c) {
    return static_cast<T>(static_cast<U>((static_cast<W>(a) * b) >> kBits) + static_cast<U>(c));
  });
  if constexpr (sizeof(T) < 8) {
    using UW = Unsigned<W>;
    op<W, T, T>(r, "mul.wide." + t,
                [](T a, T b) { return static_cast<W>(static_cast<W>(a) * static_cast<W>(b)); });
    op<W, T, T, W>(r, "mad.wide." + t, [](T a, T b, W c) {
      return static_cast<W>(static_cast<UW>(static_cast<W>(a) * static_cast<W>(b)) +
                            static_cast<UW>(c));
    });
  }
  op<T, T, u32>(r, "shr." + t, [](T a, u32 n) -> T {
    return n >= kBits ? (std::is_signed_v<T> && a < 0 ? T(-1) : T(0)) : T(a >> n);
  });
  op<T, T>(r, "abs." + t, [](T a) { return a < 0 ? static_cast<T>(U{} - static_cast<U>(a)) : a; });
  op<T, T, T, T>(r, "sad." + t,
                 [](T a, T b, T c) { return static_cast<T>((a < b ? b - a : a - b) + c); });
  op<T, T, u32, u32>(r, "bfe." + t, [](T a, u32 start, u32 length) -> T {
    start &= 255, length &= 255;
    const bool negative = std::is_signed_v<T> && a < 0;
    if (length == 0) return 0;
    const int top = static_cast<int>(start + length) - 1;
    const T sign =
        std::is_signed_v<T> && (static_cast<U>(a) >> (top < kBits - 1 ? top : kBits - 1) & 1)
            ? T(-1)
            : T(0);
    if (start >= kBits) return negative ? T(-1) : T(0);
    U value = static_cast<U>(a) >> start;
    if (length < kBits) {
      const U ones = (U{1} << length) - 1;
      value = (value & ones) | (sign ? static_cast<U>(~ones) : U{});
    }
    if (std::is_signed_v<T> && top >= kBits && negative) value |= static_cast<U>(~(~U{} >> start));
    return static_cast<T>(value);
  });
  op<u32, T>(r, "bfind." + t, [](T a) -> u32 {
    U x = static_cast<U>(std::is_signed_v<T> && a < 0 ? ~a : a);
    return x ? 63 - __builtin_clzll(x) : ~0u;
  });
  op<u32, T>(r, "bfind.shiftamt." + t, [](T a) -> u32 {
    U x = static_cast<U>(std::is_signed_v<T> && a < 0 ? ~a : a);
    return x ? __builtin_clzll(x) - (64 - kBits) : ~0u;
  });
#define CMP(NAME, E)                                               \
  r.add("setp." NAME "." + t, [](Warp& w, const Inst& i, u32 m) {  \
    set_predicate<T>(w, i, m, [](T a, T b) -> bool { return E; }); \
  })
  CMP("eq", a == b);
  CMP("ne", a != b);
  CMP("lt", a < b);
  CMP("le", a <= b);
  CMP("gt", a > b);
  CMP("ge", a >= b);
  CMP("lo", a < b);
  CMP("ls", a <= b);
  CMP("hi", a > b);
  CMP("hs", a >= b);
}

// What needs no sign; T is unsigned.
template <typename T>
void bit_ops(Registry& r, const std::string& t) {
  constexpr int kBits = 8 * sizeof(T);
  op<T, T>(r, "mov." + t, [](T a) { return a; });
  op<T, T, T>(r, "add." + t, [](T a, T b) { return static_cast<T>(a + b); });
  op<T, T, T>(r, "sub." + t, [](T a, T b) { return static_cast<T>(a - b); });
  op<T, T, T>(r, "mul.lo." + t, [](T a, T b) { return static_cast<T>(static_cast<u64>(a) * b); });
  op<T, T, T, T>(r, "mad.lo." + t,
                 [](T a, T b, T c) { return static_cast<T>(static_cast<u64>(a) * b + c); });
  op<T, T>(r, "neg." + t, [](T a) { return static_cast<T>(-a); });
  op<T, T, T>(r, "and." + t, [](T a, T b) { return static_cast<T>(a & b); });
  op<T, T, T>(r, "or." + t, [](T a, T b) { return static_cast<T>(a | b); });
  op<T, T, T>(r, "xor." + t, [](T a, T b) { return static_cast<T>(a ^ b); });
  op<T, T>(r, "not." + t, [](T a) { return static_cast<T>(~a); });
  op<T, T>(r, "cnot." + t, [](T a) { return static_cast<T>(a == 0); });
  op<T, T, u32>(r, "shl." + t, [](T a, u32 n) -> T { return n >= kBits ? T(0) : T(a << n); });
  op<u32, T>(r, "popc." + t, [](T a) -> u32 { return __builtin_popcountll(a); });
  op<u32, T>(r, "clz." + t,
             [](T a) -> u32 { return a ? __builtin_clzll(a) - (64 - kBits) : kBits; });
  op<T, T>(r, "brev." + t, [](T a) {
    T x = 0;
    for (int n = 0; n < kBits; ++n) x |= static_cast<T>((a >> n) & 1) << (kBits - 1 - n);
    return x;
  });
  op<T, T, T, u32, u32>(r, "bfi." + t, [](T a, T b, u32 start, u32 length) -> T {
    start &= 255, length &= 255;
    if (start >= kBits || length == 0) return b;
    const T ones =
        static_cast<T>((length >= kBits ? ~T{} : static_cast<T>((T{1} << length) - 1)) << start);
    return static_cast<T>((b & ~ones) | ((a << start) & ones));
  });
  r.add("selp." + t, [](Warp& w, const Inst& i, u32 m) {
    const u32 p = w.pred(i.o[3]);
    const T *a = w.row<T>(i.o[1]), *b = w.row<T>(i.o[2]);
    T* d = w.row<T>(i.o[0]);
    if (m == kAll) {
#pragma GCC ivdep
      for (int l = 0; l < kLanes; ++l) d[l] = p >> l & 1 ? a[l] : b[l];
    } else {
      each(m, [&](int l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
    }
  });
  // Chains with a carry; the carry is the last operand, read and written.
#define CARRY(NAME, E)                                                                             \
  r.add(NAME + t, [](Warp& w, const Inst& i, u32 m) {                                              \
    T* d = w.row<T>(i.o[0]);                                                                       \
    const T *a = w.row<T>(i.o[1]), *b = w.row<T>(i.o[2]);                                          \
    u32& carry = w.pred(i.o[3]);                                                                   \
    each(m, [&](int l) {                                                                           \
      const unsigned __int128 c = carry >> l & 1, x = a[l], y = b[l];                              \
      (void)c;                                                                                     \
      const unsigned __int128 sum = E;                                                             \
      d[l] = static_cast<T>(sum);                                                                  \
      if (i.flags & kWide) carry = (carry & ~(1u << l)) | static_cast<u32>(sum >> kBits & 1) << l; \
    });                                                                                            \
  })
  CARRY("add.carry.", x + y);
  CARRY("addc.carry.", x + y + c);
  CARRY("sub.carry.", x - y);
  CARRY("subc.carry.", x - y - c);
}

Register integers([](Registry& r) {
  integer_ops<u16>(r, "u16");
  integer_ops<s16>(r, "s16");
  integer_ops<u32>(r, "u32");
  integer_ops<s32>(r, "s32");
  integer_ops<u64>(r, "u64");
  integer_ops<s64>(r, "s64");
  bit_ops<u16>(r, "b16");
  bit_ops<u32>(r, "b32");
  bit_ops<u64>(r, "b64");
  op<u32, u32, u32, u32>(r, "prmt.b32", [](u32 a, u32 b, u32 selector) {
    const u64 bytes = static_cast<u64>(b) << 32 | a;
    u32 d = 0;
    for (int n = 0; n < 4; ++n) {
      const u32 s = selector >> 4 * n & 15;
      u32 byte = bytes >> 8 * (s & 7) & 255;
      if (s & 8) byte = byte & 128 ? 255 : 0;
      d |= byte << 8 * n;
    }
    return d;
  });
  r.add("lop3.b32", [](Warp& w, const Inst& i, u32 m) {
    const u32 table = static_cast<u32>(i.imm);
    map<u32, u32, u32, u32>(w, i, m, [=](u32 a, u32 b, u32 c) {
      u32 d = 0;
      for (int n = 0; n < 8; ++n)
        if (table >> n & 1) d |= (n & 4 ? a : ~a) & (n & 2 ? b : ~b) & (n & 1 ? c : ~c);
      return d;
    });
  });
  op<u32, u32, u32, u32>(r, "shf.l.wrap.b32", [](u32 a, u32 b, u32 n) {
    return static_cast<u32>((static_cast<u64>(b) << 32 | a) << (n & 31) >> 32);
  });
  op<u32, u32, u32, u32>(r, "shf.r.wrap.b32", [](u32 a, u32 b, u32 n) {
    return static_cast<u32>((static_cast<u64>(b) << 32 | a) >> (n & 31));
  });
  op<u32, u32, u32, u32>(r, "shf.l.clamp.b32", [](u32 a, u32 b, u32 n) {
    return n >= 32 ? a : static_cast<u32>((static_cast<u64>(b) << 32 | a) << n >> 32);
  });
  op<u32, u32, u32, u32>(r, "shf.r.clamp.b32", [](u32 a, u32 b, u32 n) {
    return n >= 32 ? b : static_cast<u32>((static_cast<u64>(b) << 32 | a) >> n);
  });
  // mul24 is not here: compilers for these architectures do not emit it.
  auto predicate = [&](const char* name, auto f) {
    r.add(name, [](Warp& w, const Inst& i, u32 m) {
      const u32 a = w.pred(i.o[1]), b = w.pred(i.o[2]);
      w.pred(i.o[0]) = (w.pred(i.o[0]) & ~m) | (decltype(f)()(a, b) & m);
    });
  };
  struct And {
    u32 operator()(u32 a, u32 b) { return a & b; }
  };
  struct Or {
    u32 operator()(u32 a, u32 b) { return a | b; }
  };
  struct Xor {
    u32 operator()(u32 a, u32 b) { return a ^ b; }
  };
  struct Not {
    u32 operator()(u32 a, u32) { return ~a; }
  };
  struct Same {
    u32 operator()(u32 a, u32) { return a; }
  };
  predicate("and.pred", And());
  predicate("or.pred", Or());
  predicate("xor.pred", Xor());
  predicate("not.pred", Not());
  predicate("mov.pred", Same());
  r.add("selp.pred", [](Warp& w, const Inst& i, u32 m) {
    const u32 p = w.pred(i.o[3]), value = (w.pred(i.o[1]) & p) | (w.pred(i.o[2]) & ~p);
    w.pred(i.o[0]) = (w.pred(i.o[0]) & ~m) | (value & m);
  });
  // mov d, {a, b, ...} and mov {a, b, ...}, d: `size` bytes of each part.
  auto pack = [](Warp& w, const Inst& i, u32 m) {
    const int parts = static_cast<int>(i.imm), size = i.size;
    u8* d = w.file + i.o[0];
    each(m, [&](int l) {
      u8 value[16];
      for (int n = 0; n < parts; ++n)
        std::memcpy(value + n * size, w.file + i.o[n + 1] + l * size, size);
      std::memcpy(d + l * parts * size, value, parts * size);
    });
  };
  auto unpack = [](Warp& w, const Inst& i, u32 m) {
    const int parts = static_cast<int>(i.imm), size = i.size;
    const u8* s = w.file + i.o[parts];
    each(m, [&](int l) {
      u8 value[16];
      std::memcpy(value, s + l * parts * size, parts * size);
      for (int n = 0; n < parts; ++n)
        if (i.o[n] >= 0) std::memcpy(w.file + i.o[n] + l * size, value + n * size, size);
    });
  };
  r.add("pack", pack);
  r.add("unpack", unpack);
});

}  // namespace

}  // namespace ptxrun
