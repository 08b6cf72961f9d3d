// Warps of 32 lanes run in lock step over PTX that was lowered to calls of handlers.
//
// A register is a row: the values of the 32 lanes side by side, at a byte offset in the warp's
// register file. Predicates are one 32-bit mask. Immediates and special registers are rows too.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ptxrun {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f16 = _Float16;
struct bf16 {
  u16 bits;
};

constexpr int kLanes = 32;
constexpr u32 kAll = 0xffffffffu;
// Generic addresses of the two windows that are not host memory; no host pointer has these bits.
constexpr u64 kSharedWindow = 1ull << 60, kLocalWindow = 1ull << 61;
constexpr u64 kSharedStart = 1024;  // where a block's shared memory starts in its window

enum Space : u8 { kGeneric, kGlobal, kShared, kLocal, kParam };
enum Kind : u8 { kPlain, kBranch, kExit, kWarpSync, kAligned, kBarrier, kTrap };
enum Access : u8 { kRead, kWrite, kAtomic, kStart, kArrive };  // the last two: of cp.async
enum Flags : u8 { kFtz = 1, kSat = 2, kNan = 4, kAddress32 = 8, kWide = 16, kAbs = 32 };
enum Round : u8 { kNearest, kZero, kDown, kUp, kAway };

struct Warp;
struct Inst;
using Handler = void (*)(Warp&, const Inst&, u32 mask);

struct Inst {
  Handler run;
  const s32* o;  // operands: offsets of rows
  s64 imm;
  s32 target, guard;
  u8 kind, negated, space, flags, round, size;
};

struct Count {
  u64 warps, lanes;
  u64 transactions;  // 32-byte sectors of global, wavefronts of shared memory
  u64 lines;         // of 128 bytes of global memory
};

// What ends a launch.
struct Fatal {
  std::string what;
};

// The last write and the reads since, of one grain of shared memory. `reader` kMany: `read_clock`
// is an index of Readers.
struct Cell {
  u32 write_clock, write_serial, read_clock;
  u16 writer, reader;
};
constexpr u16 kMany = 0xffff;
constexpr u32 kByAtomic = 0x80000000u, kInFlight = 0x40000000u;  // as write_serial
struct ReaderSet {
  u32 epoch;
  u32 clock[kLanes], lanes[kLanes];  // of each warp
};

struct Range {
  u64 first, last;  // one past
  bool writable;
  std::vector<u32> writer, reader;  // block + 1 that wrote or read 4 bytes; kAll: several did
};

struct PendingCopy {
  u64 to;
  u32 size, lane;
  u8 data[16];
};
struct CopyGroup {
  std::vector<PendingCopy> copies;
};

struct Launch;

struct Group {
  s32 pc;
  u32 mask;
  enum { kReady, kMeeting, kAtBarrier } state;
  s32 barrier, expected;
};

struct Warp {
  Launch* launch;
  int index;
  u32 alive, serial;
  u32 clock;          // synchronisations so far
  u32 known[kLanes];  // the clocks of other warps that this one has synchronised with
  std::vector<Group> groups;
  std::vector<CopyGroup> copies;  // cp.async, oldest first; the last one is not committed
  u8* file;
  std::vector<u8> local;

  template <typename T>
  T* row(s32 offset) {
    return reinterpret_cast<T*>(file + offset);
  }
  u32& pred(s32 offset) { return *row<u32>(offset); }
};

struct Constant {
  s32 offset, width;
  u64 value;
};

struct Fault {
  std::string kind, what;
  s32 pc;
  s32 block[3];
  s32 thread;
  u64 address;
};

struct Config {
  u32 grid[3], block[3];
  u32 static_shared, dynamic_shared, local_bytes, file_bytes, grain, param_bytes;
  u32 instructions, constants;
  u8 races, uninitialised, global_races, transactions, same_value;
  u64 budget;
  u32 arch;  // 80, 90, ...
};

struct Launch {
  Config config;
  std::vector<Inst> code;
  std::vector<Count> counts;
  std::vector<Warp> warps;
  std::vector<u8> shared, params, files;
  std::vector<Cell> cells;
  std::vector<ReaderSet> readers;
  std::vector<u32> free_readers;
  std::vector<std::unique_ptr<Range>> ranges;  // sorted
  std::vector<Fault> faults;
  std::map<std::pair<s32, std::string>, int> seen;
  u32 block[3], block_number, epoch;
  u64 executed;

  void report(const char* kind, Warp& w, const Inst& i, int lane, u64 address, std::string what,
              bool fatal);
};

// Runs all blocks of a launch; throws Fatal where a fault ends it.
void run_blocks(Launch& launch);

// Where the lanes of `mask` access `size` bytes; checks all of them first. `data`, of writes: the
// bytes of lane l from data + l * size.
void resolve(Warp& w, const Inst& i, u32 mask, u64 (&address)[kLanes], u32 size, Access access,
             const u8* data, u8* (&place)[kLanes]);
void addresses(Warp& w, const Inst& i, s32 offset, u64 (&address)[kLanes]);
// One lane's shared bytes, as above.
u8* shared_at(Warp& w, const Inst& i, int lane, u64 address, u32 size, Access access,
              const u8* data);
// Host memory that a launch may access, or null.
Range* range_of(Launch& launch, u64 address, u32 size);
// 32-byte sectors and 128-byte lines that the lanes touch, in memory that begins at a line.
void count_global(Launch& launch, Count& count, u32 mask, const u64 (&address)[kLanes], u32 size);
void start_copies(Warp& w, const Inst& i, u32 mask);
void commit_copies(Warp& w, const Inst& i, u32 mask);
void wait_copies(Warp& w, const Inst& i, u32 mask);
void synchronise_warp(Warp& w);

inline std::string hex(u64 x) {
  char text[32];
  snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(x));
  return text;
}

struct Registry {
  std::map<std::string, int> index;
  std::vector<Handler> handlers;
  void add(const std::string& name, Handler handler) {
    index[name] = static_cast<int>(handlers.size());
    handlers.push_back(handler);
  }
};
Registry& registry();
struct Register {
  template <typename F>
  explicit Register(F fill) {
    fill(registry());
  }
};

template <typename F>
inline void each(u32 mask, F f) {
  for (; mask; mask &= mask - 1) f(__builtin_ctz(mask));
}

inline float to_float(float x) { return x; }
inline float to_float(f16 x) { return static_cast<float>(x); }
inline float to_float(bf16 x) {
  u32 bits = static_cast<u32>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
inline double to_float(double x) { return x; }
inline u32 bits_of(float x) {
  u32 bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(u32 bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline bf16 to_bf16(float x) {
  const u32 bits = bits_of(x);
  if (x != x) return {0x7fff};
  return {static_cast<u16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
inline float flush(float x) {
  return (bits_of(x) & 0x7f800000u) ? x : float_of(bits_of(x) & 0x80000000u);
}

}  // namespace ptxrun
