// Shared memory: bounds, initialisation and races, and the copies that arrive there later.
#include "engine.h"

namespace ptxrun {
namespace {

std::string thread_name(const Warp& w, int lane) {
  return "thread " + std::to_string(w.index * kLanes + lane);
}

// Whether thread `other` at its `clock` has synchronised with warp w since.
bool ordered(const Warp& w, int lane, u16 other, u32 clock) {
  return other == w.index * kLanes + lane || w.known[other / kLanes] >= clock;
}

void drop_readers(Launch& launch, Cell& cell) {
  if (cell.reader == kMany) launch.free_readers.push_back(cell.read_clock);
  cell.reader = 0;
  cell.read_clock = 0;
}

void race(Warp& w, const Inst& i, int lane, u64 address, const char* now, const char* before,
          int other) {
  w.launch->report("race", w, i, lane, address,
                   std::string(now) + " of shared memory by " + thread_name(w, lane) +
                       ", unordered with a " + before + " by thread " + std::to_string(other),
                   false);
}

void note_read(Warp& w, const Inst& i, int lane, u64 address, Cell& cell) {
  Launch& launch = *w.launch;
  if (cell.write_clock == 0) {
    if (launch.config.uninitialised)
      launch.report("uninitialised", w, i, lane, address,
                    "read of shared memory that nothing has written", false);
  } else if (cell.write_serial == kInFlight) {
    race(w, i, lane, address, "read", "cp.async that has not been waited for,", cell.writer);
  } else if (!ordered(w, lane, cell.writer, cell.write_clock)) {
    race(w, i, lane, address, "read", "write", cell.writer);
  }
  const u16 self = static_cast<u16>(w.index * kLanes + lane);
  if (cell.reader == kMany) {
    ReaderSet& set = launch.readers[cell.read_clock];
    if (set.epoch == launch.epoch) {
      u32& clock = set.clock[w.index];
      set.lanes[w.index] = clock == w.clock ? set.lanes[w.index] | 1u << lane : 1u << lane;
      clock = w.clock;
      return;
    }
    drop_readers(launch, cell);
  }
  if (cell.read_clock == 0 || ordered(w, lane, cell.reader, cell.read_clock)) {
    cell.reader = self;
    cell.read_clock = w.clock;
    return;
  }
  u32 index;
  if (launch.free_readers.empty()) {
    index = static_cast<u32>(launch.readers.size());
    launch.readers.emplace_back();
  } else {
    index = launch.free_readers.back();
    launch.free_readers.pop_back();
  }
  ReaderSet& set = launch.readers[index];
  set = ReaderSet{};
  set.epoch = launch.epoch;
  set.clock[cell.reader / kLanes] = cell.read_clock;
  set.lanes[cell.reader / kLanes] = 1u << cell.reader % kLanes;
  if (cell.reader / kLanes != w.index || cell.read_clock != w.clock) set.lanes[w.index] = 0;
  set.clock[w.index] = w.clock;
  set.lanes[w.index] |= 1u << lane;
  cell.reader = kMany;
  cell.read_clock = index;
}

void note_write(Warp& w, const Inst& i, int lane, u64 address, Cell& cell, Access access,
                bool same_bytes) {
  Launch& launch = *w.launch;
  const bool atomics = access == kAtomic && cell.write_serial == kByAtomic;
  if (cell.write_serial == kInFlight && access != kArrive)
    race(w, i, lane, address, "write", "cp.async that has not been waited for,", cell.writer);
  if (cell.write_clock && !same_bytes && !atomics &&
      !ordered(w, lane, cell.writer, cell.write_clock))
    race(w, i, lane, address, "write", "write", cell.writer);
  if (same_bytes) {
    // Readers see the same before and after.
  } else if (cell.reader == kMany) {
    const ReaderSet& set = launch.readers[cell.read_clock];
    if (set.epoch == launch.epoch) {
      for (u32 other = 0; other < launch.warps.size(); ++other) {
        u32 lanes = set.lanes[other];
        if (other == static_cast<u32>(w.index)) lanes &= ~(1u << lane);
        if (lanes && w.known[other] < set.clock[other]) {
          race(w, i, lane, address, "write", "read", other * kLanes + __builtin_ctz(lanes));
          break;
        }
      }
    }
  } else if (cell.read_clock && !ordered(w, lane, cell.reader, cell.read_clock)) {
    race(w, i, lane, address, "write", "read", cell.reader);
  }
  drop_readers(launch, cell);
  cell.writer = static_cast<u16>(w.index * kLanes + lane);
  cell.write_clock = w.clock;
  cell.write_serial = access == kAtomic ? kByAtomic : access == kStart ? kInFlight : w.serial;
}

void note(Warp& w, const Inst& i, int lane, u64 offset, u32 size, Access access, const u8* data) {
  Launch& launch = *w.launch;
  const u32 grain = launch.config.grain;
  for (u64 at = offset; at < offset + size; at += grain) {
    Cell& cell = launch.cells[at / grain];
    const u64 address = kSharedStart + at;
    if (access == kRead || (access == kAtomic && cell.write_clock == 0))
      note_read(w, i, lane, address, cell);
    if (access != kRead) {
      // Equal bytes: by lanes of one store, or, unless that is to be reported, by any threads.
      bool same = data && cell.write_serial == w.serial && cell.writer / kLanes == w.index &&
                  !std::memcmp(data + lane * size, data + cell.writer % kLanes * size, size);
      if (data && !launch.config.same_value)
        same |= !std::memcmp(data + lane * size + (at - offset), launch.shared.data() + at, grain);
      note_write(w, i, lane, address, cell, access, same);
    }
  }
}

}  // namespace

u8* shared_at(Warp& w, const Inst& i, int lane, u64 address, u32 size, Access access,
              const u8* data) {
  Launch& launch = *w.launch;
  const u64 offset = address - kSharedStart,
            total = launch.config.static_shared + launch.config.dynamic_shared;
  if (offset >= total || offset + size > total)
    launch.report("out of bounds", w, i, lane, address,
                  std::to_string(size) + " bytes of shared memory, of which there are " +
                      std::to_string(total) + " from " + hex(kSharedStart),
                  true);
  if (launch.config.races) note(w, i, lane, offset, size, access, data);
  return launch.shared.data() + offset;
}

// cp.async [to], [from], size, source size: the source is read now, the copy arrives at a wait.
void start_copies(Warp& w, const Inst& i, u32 mask) {
  u64 to[kLanes], from[kLanes];
  const u64* rows = w.row<u64>(i.o[0]);
  for (int l = 0; l < kLanes; ++l) to[l] = rows[l];
  rows = w.row<u64>(i.o[1]);
  const u32* wanted = i.o[2] >= 0 ? w.row<u32>(i.o[2]) : nullptr;
  u32 reads = 0;
  for (int l = 0; l < kLanes; ++l) {
    from[l] = rows[l];
    if ((mask >> l & 1) && (!wanted || wanted[l])) reads |= 1u << l;
  }
  const u32 size = i.size;
  u8* source[kLanes];
  for (u32 left = reads; left;) {
    // Lanes that read fewer bytes than the copy has (the rest is zero) are checked for those alone.
    const u32 bytes = wanted ? wanted[__builtin_ctz(left)] : size;
    u32 same = 0;
    each(left, [&](int l) { same |= ((wanted ? wanted[l] : size) == bytes) << l; });
    left &= ~same;
    each(same, [&](int l) {
      if (from[l] % size)
        w.launch->report("misaligned", w, i, l, from[l], "source of cp.async", true);
      if (!range_of(*w.launch, from[l], bytes))
        w.launch->report("out of bounds", w, i, l, from[l], "source of cp.async", true);
      source[l] = reinterpret_cast<u8*>(from[l]);
    });
  }
  if (w.copies.empty()) w.copies.emplace_back();
  each(mask, [&](int l) {
    if (to[l] % size) w.launch->report("misaligned", w, i, l, to[l], "target of cp.async", true);
    shared_at(w, i, l, to[l], size, kStart, nullptr);
    PendingCopy copy{to[l], size, static_cast<u32>(l), {}};
    const u32 bytes = wanted ? wanted[l] : size;
    if (reads >> l & 1) std::memcpy(copy.data, source[l], bytes < size ? bytes : size);
    // Until it arrives nobody knows what is there.
    std::memset(w.launch->shared.data() + (to[l] - kSharedStart), 0xff, size);
    w.copies.back().copies.push_back(copy);
  });
  if (w.launch->config.transactions && reads)
    count_global(*w.launch, w.launch->counts[&i - w.launch->code.data()], reads, from, size);
}

void commit_copies(Warp& w, const Inst&, u32) {
  if (w.copies.empty()) w.copies.emplace_back();
  w.copies.emplace_back();
}

// Completes all but the newest `imm` groups that are committed; -1: all copies.
void wait_copies(Warp& w, const Inst& i, u32) {
  const size_t kept = i.imm < 0 ? 0 : static_cast<size_t>(i.imm) + 1;
  while (w.copies.size() > kept) {
    for (const PendingCopy& copy : w.copies.front().copies) {
      u8* place = shared_at(w, i, copy.lane, copy.to, copy.size, kArrive, nullptr);
      std::memcpy(place, copy.data, copy.size);
    }
    w.copies.erase(w.copies.begin());
  }
}

void synchronise_warp(Warp& w) {
  w.known[w.index] = w.clock;
  ++w.clock;
}

}  // namespace ptxrun
