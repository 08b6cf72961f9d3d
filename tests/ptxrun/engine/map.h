// Handlers of one operation: a function of the lanes' values, over the rows of its operands.
#pragma once

#include <limits>
#include <type_traits>
#include <utility>

#include "engine.h"

namespace ptxrun {

// d[l] = f(operands[l]) for the lanes of the mask. Rows are disjoint or the same.
template <typename D, typename... S, typename F, size_t... N>
inline void map_rows(Warp& w, const Inst& i, u32 mask, F f, std::index_sequence<N...>) {
  D* d = w.row<D>(i.o[0]);
  auto go = [&](const S*... s) {
    if (mask == kAll) {
#pragma GCC ivdep
      for (int l = 0; l < kLanes; ++l) d[l] = f(s[l]...);
    } else {
      each(mask, [&](int l) { d[l] = f(s[l]...); });
    }
  };
  go(w.row<S>(i.o[N + 1])...);
}
template <typename D, typename... S, typename F>
inline void map(Warp& w, const Inst& i, u32 mask, F f) {
  map_rows<D, S...>(w, i, mask, f, std::index_sequence_for<S...>());
}

template <typename S, typename F>
inline u32 compare(const S* a, const S* b, F f) {
  u8 bits[kLanes];
  for (int l = 0; l < kLanes; ++l) bits[l] = f(a[l], b[l]);
  u32 mask = 0;
  for (int l = 0; l < kLanes; ++l) mask |= static_cast<u32>(bits[l]) << l;
  return mask;
}

// setp d, q, a, b, c: d = compare op c, q = !compare op c; q and c may be missing. `imm`: op.
template <typename S, typename F>
inline void set_predicate(Warp& w, const Inst& i, u32 mask, F f) {
  const u32 found = compare(w.row<S>(i.o[2]), w.row<S>(i.o[3]), f);
  u32 yes = found, no = ~found;
  if (i.imm) {
    const u32 c = w.pred(i.o[4]);
    yes = i.imm == 1 ? found & c : i.imm == 2 ? found | c : found ^ c;
    no = i.imm == 1 ? ~found & c : i.imm == 2 ? ~found | c : ~found ^ c;
  }
  auto put = [&](s32 offset, u32 value) {
    if (offset >= 0) w.pred(offset) = (w.pred(offset) & ~mask) | (value & mask);
  };
  put(i.o[0], yes);
  put(i.o[1], no);
}

// Registers f, which holds nothing, for the rows of D and S.
template <typename F>
F& held(F* f = nullptr) {
  static F kept = *f;
  return kept;
}
template <typename D, typename... S, typename F>
void op(Registry& r, const std::string& name, F f) {
  held(&f);
  r.add(name, [](Warp& w, const Inst& i, u32 m) { map<D, S...>(w, i, m, held<F>()); });
}

}  // namespace ptxrun
