// Address spaces, and what is checked of every access: bounds, alignment, races, initialisation.
#include <algorithm>

#include "engine.h"

namespace ptxrun {
namespace {

void note_global(Warp& w, const Inst& i, int lane, Range& range, u64 address, u32 size,
                 Access access, const u8* data) {
  Launch& launch = *w.launch;
  if (range.writer.empty()) {
    range.writer.resize((range.last - range.first) / 4 + 2);
    range.reader.resize(range.writer.size());
  }
  const u32 self = launch.block_number + 1;
  for (u64 at = address; at < address + size; at += 4) {
    u32& writer = range.writer[(at - range.first) / 4];
    u32& reader = range.reader[(at - range.first) / 4];
    if (access == kRead) {
      if (writer && writer != self)
        launch.report("global race", w, i, lane, at,
                      "read of what block " + std::to_string(writer - 1) + " writes", false);
      reader = reader && reader != self ? kAll : self;
    } else if (access == kWrite) {
      const bool same =
          data && !std::memcmp(data + lane * size, reinterpret_cast<u8*>(address), size);
      if (!same && size >= 4 && ((writer && writer != self) || (reader && reader != self)))
        launch.report("global race", w, i, lane, at,
                      "write of what another block reads or writes otherwise", false);
      if (!same) writer = self;
    }
  }
}

// Which of the lanes of one store wins is not said.
void check_lanes_agree(Warp& w, const Inst& i, u32 mask, const u64 (&address)[kLanes], u32 size,
                       const u8* data) {
  each(mask, [&](int l) {
    each(mask & ((1u << l) - 1), [&](int other) {
      if (address[other] == address[l] && std::memcmp(data + l * size, data + other * size, size))
        w.launch->report("global race", w, i, l, address[l],
                         "lanes of one store write different values to one place", false);
    });
  });
}

// How often a bank is asked for different words, over the 8, 16 or 32 addresses served together;
// lanes with the same address count once, but atomics each.
u32 wavefronts(u32 mask, const u64 (&address)[kLanes], u32 size, Access access) {
  const int together = size >= 16 ? 8 : size == 8 ? 16 : 32, words = size >= 4 ? size / 4 : 1;
  u64 distinct[kLanes];
  int count = 0;
  each(mask, [&](int l) {
    for (int n = count - 1; n >= 0 && access != kAtomic; --n)
      if (distinct[n] == address[l]) return;
    distinct[count++] = address[l];
  });
  u32 total = 0;
  for (int first = 0; first < count; first += together) {
    u64 word[kLanes][kLanes];
    u8 asked[kLanes] = {};
    u32 worst = 0;
    for (int n = first; n < std::min(first + together, count); ++n)
      for (int k = 0; k < words; ++k) {
        const u64 at = distinct[n] / 4 + k;
        const int bank = at % kLanes;
        bool known = false;
        for (int m = 0; m < asked[bank] && access != kAtomic; ++m) known |= word[bank][m] == at;
        if (known) continue;
        word[bank][asked[bank]++] = at;
        worst = std::max<u32>(worst, asked[bank]);
      }
    total += worst;
  }
  return total;
}

}  // namespace

Range* range_of(Launch& launch, u64 address, u32 size) {
  auto& ranges = launch.ranges;
  auto after =
      std::upper_bound(ranges.begin(), ranges.end(), address,
                       [](u64 a, const std::unique_ptr<Range>& r) { return a < r->first; });
  if (after == ranges.begin()) return nullptr;
  Range* range = std::prev(after)->get();
  return address + size <= range->last ? range : nullptr;
}

void count_global(Launch& launch, Count& count, u32 mask, const u64 (&address)[kLanes], u32 size) {
  u64 known[3 * kLanes];
  int found = 0;
  const Range* range = nullptr;
  each(mask, [&](int l) {
    if (!range || address[l] < range->first || address[l] >= range->last)
      range = range_of(launch, address[l], size);
    // A GPU's allocations begin at a line; the host's, anywhere.
    const u64 at = address[l] + (range ? -range->first % 128 : 0);
    for (u64 sector = at / 32; sector <= (at + size - 1) / 32; ++sector)
      if (!found || known[found - 1] != sector) known[found++] = sector;
  });
  std::sort(known, known + found);
  found = static_cast<int>(std::unique(known, known + found) - known);
  count.transactions += found;
  for (int n = 0; n < found; ++n) count.lines += !n || known[n] / 4 != known[n - 1] / 4;
}

void addresses(Warp& w, const Inst& i, s32 offset, u64 (&address)[kLanes]) {
  if (i.flags & kAddress32) {
    const u32* row = w.row<u32>(offset);
    for (int l = 0; l < kLanes; ++l)
      address[l] = static_cast<u32>(row[l] + static_cast<u32>(i.imm));
  } else {
    const u64* row = w.row<u64>(offset);
    for (int l = 0; l < kLanes; ++l) address[l] = row[l] + i.imm;
  }
}

void resolve(Warp& w, const Inst& i, u32 mask, u64 (&address)[kLanes], u32 size, Access access,
             const u8* data, u8* (&place)[kLanes]) {
  Launch& launch = *w.launch;
  Space space = static_cast<Space>(i.space);
  const int first = __builtin_ctz(mask);
  if (space == kGeneric) {  // as the first lane's; lanes in different windows go one by one
    auto window = [](u64 a) { return a >> 60; };
    u32 others = 0;
    each(mask, [&](int l) { others |= (window(address[l]) != window(address[first])) << l; });
    if (others) {
      resolve(w, i, mask & ~others, address, size, access, data, place);
      return resolve(w, i, others, address, size, access, data, place);
    }
    space = window(address[first]) == 1 ? kShared : window(address[first]) == 2 ? kLocal : kGlobal;
    if (space == kShared) each(mask, [&](int l) { address[l] -= kSharedWindow; });
    if (space == kLocal) each(mask, [&](int l) { address[l] -= kLocalWindow; });
  }
  const u32 alignment = access == kAtomic && size > 8 ? 8 : size;
  u64 low = 0;
  each(mask, [&](int l) { low |= address[l] & (alignment - 1); });
  if (low)
    each(mask, [&](int l) {
      if (address[l] & (alignment - 1))
        launch.report("misaligned", w, i, l, address[l],
                      "access of " + std::to_string(size) + " bytes", true);
    });
  Count& count = launch.counts[&i - launch.code.data()];
  switch (space) {
    case kShared: {
      each(mask, [&](int l) { place[l] = shared_at(w, i, l, address[l], size, access, data); });
      if (launch.config.transactions) count.transactions += wavefronts(mask, address, size, access);
      break;
    }
    case kLocal: {
      const u32 bytes = launch.config.local_bytes;
      each(mask, [&](int l) {
        if (address[l] + size > bytes)
          launch.report("out of bounds", w, i, l, address[l], "local memory", true);
        place[l] = w.local.data() + l * bytes + address[l];
      });
      break;
    }
    case kParam: {
      each(mask, [&](int l) {
        if (address[l] + size > launch.params.size() || access != kRead)
          launch.report("out of bounds", w, i, l, address[l], "parameters", true);
        place[l] = launch.params.data() + address[l];
      });
      break;
    }
    default: {
      Range* range = nullptr;
      each(mask, [&](int l) {
        if (!range || address[l] < range->first || address[l] + size > range->last) {
          range = range_of(launch, address[l], size);
          if (!range) {
            std::string near;
            for (auto& r : launch.ranges)
              if (address[l] + 65536 > r->first && address[l] < r->last + 65536)
                near += " [" + hex(r->first) + ", " + hex(r->last) + ")";
            launch.report("out of bounds", w, i, l, address[l],
                          std::to_string(size) +
                              " bytes of global memory outside of every "
                              "allocation" +
                              (near.empty() ? "" : "; near" + near),
                          true);
          }
          if (access != kRead && !range->writable)
            launch.report("out of bounds", w, i, l, address[l], "write of a constant", true);
        }
        if (launch.config.global_races)
          note_global(w, i, l, *range, address[l], size, access, data);
        place[l] = reinterpret_cast<u8*>(address[l]);
      });
      if (launch.config.global_races && data) check_lanes_agree(w, i, mask, address, size, data);
      if (launch.config.transactions) count_global(launch, count, mask, address, size);
    }
  }
}

}  // namespace ptxrun
