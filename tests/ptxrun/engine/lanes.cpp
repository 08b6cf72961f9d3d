// Loads, stores and atomics, shuffles and votes.
#include "engine.h"

namespace ptxrun {
namespace {

template <typename T, int kCount>
void load(Warp& w, const Inst& i, u32 m) {
  u64 address[kLanes];
  u8* place[kLanes];
  addresses(w, i, i.o[kCount], address);
  resolve(w, i, m, address, sizeof(T) * kCount, kRead, nullptr, place);
  for (int n = 0; n < kCount; ++n) {
    if (i.o[n] < 0) continue;
    T* d = w.row<T>(i.o[n]);
    each(m, [&](int l) { std::memcpy(d + l, place[l] + n * sizeof(T), sizeof(T)); });
  }
}

template <typename T, int kCount>
void store(Warp& w, const Inst& i, u32 m) {
  u64 address[kLanes];
  u8* place[kLanes];
  T data[kLanes][kCount];
  addresses(w, i, i.o[kCount], address);
  for (int n = 0; n < kCount; ++n) {
    const T* s = w.row<T>(i.o[n]);
    for (int l = 0; l < kLanes; ++l) data[l][n] = s[l];
  }
  resolve(w, i, m, address, sizeof(T) * kCount, kWrite, reinterpret_cast<u8*>(data), place);
  each(m, [&](int l) { std::memcpy(place[l], data[l], sizeof(T) * kCount); });
}

template <typename T>
void memory_ops(Registry& r, const std::string& t) {
  r.add("ld." + t + ".1", load<T, 1>), r.add("st." + t + ".1", store<T, 1>);
  r.add("ld." + t + ".2", load<T, 2>), r.add("st." + t + ".2", store<T, 2>);
  r.add("ld." + t + ".4", load<T, 4>), r.add("st." + t + ".4", store<T, 4>);
  r.add("ld." + t + ".8", load<T, 8>), r.add("st." + t + ".8", store<T, 8>);
}

// atom d, [a], b, c; d may be missing.
template <typename T, typename F>
void atomic(Registry& r, const std::string& name, F) {
  r.add("atom." + name, [](Warp& w, const Inst& i, u32 m) {
    u64 address[kLanes];
    u8* place[kLanes];
    addresses(w, i, i.o[1], address);
    resolve(w, i, m, address, sizeof(T), kAtomic, nullptr, place);
    const T *b = w.row<T>(i.o[2]), *c = w.row<T>(i.o[3] < 0 ? i.o[2] : i.o[3]);
    each(m, [&](int l) {
      T old;
      std::memcpy(&old, place[l], sizeof(T));
      const T now = F()(old, b[l], c[l]);
      std::memcpy(place[l], &now, sizeof(T));
      if (i.o[0] >= 0) w.row<T>(i.o[0])[l] = old;
    });
  });
}

template <typename T>
void atomic_ops(Registry& r, const std::string& t) {
  struct Add {
    T operator()(T a, T b, T) const { return static_cast<T>(a + b); }
  };
  struct Min {
    T operator()(T a, T b, T) const { return b < a ? b : a; }
  };
  struct Max {
    T operator()(T a, T b, T) const { return b > a ? b : a; }
  };
  struct Exchange {
    T operator()(T, T b, T) const { return b; }
  };
  atomic<T>(r, "add." + t, Add()), atomic<T>(r, "min." + t, Min()), atomic<T>(r, "max." + t, Max());
  atomic<T>(r, "exch." + t, Exchange());
  if constexpr (std::is_integral_v<T>) {
    struct And {
      T operator()(T a, T b, T) const { return a & b; }
    };
    struct Or {
      T operator()(T a, T b, T) const { return a | b; }
    };
    struct Xor {
      T operator()(T a, T b, T) const { return a ^ b; }
    };
    struct Swap {
      T operator()(T a, T b, T c) const { return a == b ? c : a; }
    };
    struct Inc {
      T operator()(T a, T b, T) const { return a >= b ? T{} : static_cast<T>(a + 1); }
    };
    struct Dec {
      T operator()(T a, T b, T) const { return a == 0 || a > b ? b : static_cast<T>(a - 1); }
    };
    atomic<T>(r, "and." + t, And()), atomic<T>(r, "or." + t, Or()), atomic<T>(r, "xor." + t, Xor());
    atomic<T>(r, "cas." + t, Swap()), atomic<T>(r, "inc." + t, Inc()),
        atomic<T>(r, "dec." + t, Dec());
  }
}

// shfl d|p, a, b, c, mask. `imm`: up, down, bfly, idx.
void shuffle(Warp& w, const Inst& i, u32 m) {
  u32 values[kLanes], *d = w.row<u32>(i.o[0]);
  std::memcpy(values, w.row<u32>(i.o[2]), sizeof values);
  const u32 *b = w.row<u32>(i.o[3]), *c = w.row<u32>(i.o[4]);
  u32 inside = 0;
  u32 result[kLanes];
  each(m, [&](int lane) {
    const int by = b[lane] & 31, segment = c[lane] >> 8 & 31, clamp = c[lane] & 31;
    const int last = (lane & segment) | (clamp & ~segment), first = lane & segment;
    int from = i.imm == 0   ? lane - by
               : i.imm == 1 ? lane + by
               : i.imm == 2 ? lane ^ by
                            : first | (by & ~segment);
    const bool valid = i.imm == 0 ? from >= last : from <= last;
    if (!valid) from = lane;
    inside |= static_cast<u32>(valid) << lane;
    if (!(m >> from & 1))
      w.launch->report("inactive lane", w, i, lane, from,
                       "shuffle from lane " + std::to_string(from) + ", which takes no part",
                       false);
    result[lane] = values[from];
  });
  each(m, [&](int l) { d[l] = result[l]; });
  if (i.o[1] >= 0) w.pred(i.o[1]) = (w.pred(i.o[1]) & ~m) | (inside & m);
}

// vote d, a, mask over each lane's mask. `imm`: all, any, uni, ballot.
void vote(Warp& w, const Inst& i, u32 m) {
  const u32 a = w.pred(i.o[1]) ^ (i.flags & kNan ? kAll : 0), *members = w.row<u32>(i.o[2]);
  u32 found = 0;
  u32 result[kLanes];
  each(m, [&](int l) {
    const u32 who = members[l] & w.alive, yes = a & who;
    result[l] = yes;
    const bool p = i.imm == 0 ? yes == who : i.imm == 1 ? yes != 0 : yes == who || yes == 0;
    found |= static_cast<u32>(p) << l;
  });
  if (i.imm == 3) {
    u32* d = w.row<u32>(i.o[0]);
    each(m, [&](int l) { d[l] = result[l]; });
  } else {
    w.pred(i.o[0]) = (w.pred(i.o[0]) & ~m) | (found & m);
  }
}

template <typename T, typename F>
void redux(Registry& r, const std::string& name, F) {
  r.add("redux." + name, [](Warp& w, const Inst& i, u32 m) {
    const T* a = w.row<T>(i.o[1]);
    const u32* members = w.row<u32>(i.o[2]);
    T result[kLanes];
    each(m, [&](int lane) {
      bool first = true;
      T sum{};
      each(members[lane] & w.alive, [&](int l) {
        sum = first ? a[l] : F()(sum, a[l]);
        first = false;
      });
      result[lane] = sum;
    });
    T* d = w.row<T>(i.o[0]);
    each(m, [&](int l) { d[l] = result[l]; });
  });
}

template <typename T>
void match_any(Warp& w, const Inst& i, u32 m) {
  const T* a = w.row<T>(i.o[1]);
  const u32* members = w.row<u32>(i.o[2]);
  u32 result[kLanes];
  each(m, [&](int lane) {
    u32 same = 0;
    each(members[lane] & w.alive, [&](int l) { same |= static_cast<u32>(a[l] == a[lane]) << l; });
    result[lane] = same;
  });
  u32* d = w.row<u32>(i.o[0]);
  each(m, [&](int l) { d[l] = result[l]; });
}

Register together([](Registry& r) {
  memory_ops<u8>(r, "b8"), memory_ops<u16>(r, "b16"), memory_ops<u32>(r, "b32"),
      memory_ops<u64>(r, "b64");
  atomic_ops<u32>(r, "u32"), atomic_ops<s32>(r, "s32"), atomic_ops<u64>(r, "u64"),
      atomic_ops<s64>(r, "s64");
  atomic_ops<float>(r, "f32"), atomic_ops<double>(r, "f64");
  r.add("shfl", shuffle), r.add("vote", vote);
  struct Add {
    u32 operator()(u32 a, u32 b) const { return a + b; }
  };
  struct And {
    u32 operator()(u32 a, u32 b) const { return a & b; }
  };
  struct Or {
    u32 operator()(u32 a, u32 b) const { return a | b; }
  };
  struct Xor {
    u32 operator()(u32 a, u32 b) const { return a ^ b; }
  };
  struct MinU {
    u32 operator()(u32 a, u32 b) const { return a < b ? a : b; }
  };
  struct MaxU {
    u32 operator()(u32 a, u32 b) const { return a > b ? a : b; }
  };
  struct MinS {
    s32 operator()(s32 a, s32 b) const { return a < b ? a : b; }
  };
  struct MaxS {
    s32 operator()(s32 a, s32 b) const { return a > b ? a : b; }
  };
  redux<u32>(r, "add.u32", Add()), redux<u32>(r, "add.s32", Add()), redux<u32>(r, "and.b32", And());
  redux<u32>(r, "or.b32", Or()), redux<u32>(r, "xor.b32", Xor()), redux<u32>(r, "min.u32", MinU());
  redux<u32>(r, "max.u32", MaxU()), redux<s32>(r, "min.s32", MinS()),
      redux<s32>(r, "max.s32", MaxS());
  r.add("match.any.b32", match_any<u32>), r.add("match.any.b64", match_any<u64>);
  r.add("activemask",
        [](Warp& w, const Inst& i, u32 m) { each(m, [&](int l) { w.row<u32>(i.o[0])[l] = m; }); });
  r.add("elect", [](Warp& w, const Inst& i, u32 m) {
    const u32* members = w.row<u32>(i.o[2]);
    each(m, [&](int l) {
      const int leader = __builtin_ctz(members[l] & w.alive);
      if (i.o[0] >= 0) w.row<u32>(i.o[0])[l] = leader;
      w.pred(i.o[1]) = (w.pred(i.o[1]) & ~(1u << l)) | static_cast<u32>(leader == l) << l;
    });
  });
  r.add("bar.warp", [](Warp& w, const Inst&, u32 m) {
    if (m == w.alive) synchronise_warp(w);  // a part of the warp synchronises nothing, to be safe
  });
  r.add("cp.async", start_copies), r.add("cp.async.commit", commit_copies),
      r.add("cp.async.wait", wait_copies);
  r.add("nop", [](Warp&, const Inst&, u32) {});
});

}  // namespace
}  // namespace ptxrun
