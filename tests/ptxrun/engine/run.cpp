// Scheduling: lanes of a warp at one place run together, the hindmost place first, and meet again
// where they arrive; warps take turns at barriers, blocks run one after the other.
#include <algorithm>

#include "engine.h"

namespace ptxrun {

void Launch::report(const char* kind, Warp& w, const Inst& i, int lane, u64 address,
                    std::string what, bool fatal) {
  const s32 pc = static_cast<s32>(&i - code.data());
  if (++seen[{pc, kind}] <= 3)
    faults.push_back(
        {kind,
         what,
         pc,
         {static_cast<s32>(block[0]), static_cast<s32>(block[1]), static_cast<s32>(block[2])},
         w.index * kLanes + lane,
         address});
  if (fatal) throw Fatal{what};
}

namespace {

std::string mask_text(u32 mask) {
  char text[16];
  snprintf(text, sizeof text, "%08x", mask);
  return text;
}

struct Runner {
  Launch& launch;

  // Runs a warp until all its lanes wait at barriers or have ended; whether it did anything.
  bool run(Warp& w) {
    bool moved = false;
    while (true) {
      int best = -1;
      for (size_t n = 0; n < w.groups.size(); ++n)
        if (w.groups[n].state == Group::kReady && (best < 0 || w.groups[n].pc < w.groups[best].pc))
          best = static_cast<int>(n);
      if (best < 0) return moved;
      Group group = w.groups[best];
      s32 limit = 0x7fffffff;
      for (size_t n = 0; n < w.groups.size();) {
        Group& other = w.groups[n];
        if (other.state != Group::kAtBarrier && other.pc == group.pc) {
          group.mask |= other.mask;
          w.groups.erase(w.groups.begin() + n);
        } else {
          if (other.state != Group::kAtBarrier && other.pc > group.pc)
            limit = std::min(limit, other.pc);
          ++n;
        }
      }
      moved |= advance(w, group, limit);
    }
  }

  void put(Warp& w, s32 pc, u32 mask, decltype(Group::state) state = Group::kReady) {
    if (mask) w.groups.push_back({pc, mask, state, 0, 0});
  }

  // Whether it got past its first instruction.
  bool advance(Warp& w, Group group, s32 limit) {
    s32 pc = group.pc;
    u32 mask = group.mask;
    bool first = true;
    while (true) {
      if (pc >= limit && !first) return put(w, pc, mask), true;
      const Inst& i = launch.code[pc];
      u32 m = mask;
      if (i.guard >= 0) m &= w.pred(i.guard) ^ (i.negated ? kAll : 0);
      Count& count = launch.counts[pc];
      if (++launch.executed > launch.config.budget)
        launch.report("budget", w, i, __builtin_ctz(mask), 0,
                      "instructions used up: an endless loop?", true);
      switch (i.kind) {
        case kPlain:
          ++count.warps, count.lanes += __builtin_popcount(m), ++w.serial;
          if (m) i.run(w, i, m);
          ++pc;
          break;
        case kBranch: {
          ++count.warps, count.lanes += __builtin_popcount(m);
          const u32 stays = mask & ~m;
          if (!stays) {
            pc = i.target;
          } else if (!m) {
            ++pc;
          } else {
            put(w, i.target, m), put(w, pc + 1, stays);
            return true;
          }
          break;
        }
        case kExit:
          ++count.warps, count.lanes += __builtin_popcount(m);
          w.alive &= ~m;
          // Who waits for these lanes alone waits no longer.
          for (Group& other : w.groups)
            if (other.state == Group::kMeeting) other.state = Group::kReady;
          put(w, pc + 1, mask & ~m);
          return true;
        case kTrap:
          if (m) launch.report("trap", w, i, __builtin_ctz(m), 0, "", true);
          ++pc;
          break;
        case kWarpSync:
        case kAligned: {
          if (m != mask) {
            put(w, pc + 1, mask & ~m);
            if (!m) return true;
            limit = std::min(limit, pc + 1);
          }
          u32 ready = m;
          if (i.kind == kAligned) {
            if (m != kAll) ready = 0;
          } else {
            const u32* members = w.row<u32>(i.target);
            each(m, [&](int l) {
              if (!(members[l] >> l & 1))
                launch.report(
                    "warp sync", w, i, l, members[l],
                    "the mask " + mask_text(members[l]) + " leaves out the lane that executes it",
                    true);
              if (members[l] & w.alive & ~m) ready &= ~(1u << l);
            });
          }
          put(w, pc, m & ~ready, Group::kMeeting);
          if (!ready) return !first;
          ++count.warps, count.lanes += __builtin_popcount(ready), ++w.serial;
          i.run(w, i, ready);
          mask = ready;
          ++pc;
          if (m != ready || m != group.mask) return put(w, pc, mask), true;
          break;
        }
        case kBarrier: {
          put(w, pc + 1, mask & ~m);
          if (!m) return true;
          ++count.warps, count.lanes += __builtin_popcount(m);
          const int lane = __builtin_ctz(m);
          const s32 id = static_cast<s32>(w.row<u32>(i.o[0])[lane]);
          const s32 expected = i.o[1] >= 0 ? static_cast<s32>(w.row<u32>(i.o[1])[lane]) : -1;
          w.groups.push_back({pc, m, Group::kAtBarrier, id, expected});
          return true;
        }
      }
      first = false;
      if (pc < group.pc && pc >= 0) {
        // Back in a loop: some that wait for lanes of the warp may be ahead now.
        for (const Group& other : w.groups)
          if (other.state != Group::kAtBarrier && other.pc < limit && other.pc > pc)
            limit = other.pc;
        group.pc = pc;
      }
    }
  }

  // Lets go those at a barrier that is complete; whether any was.
  bool release() {
    bool any = false;
    for (s32 id = 0; id < 16; ++id) {
      u32 arrived = 0, alive = 0;
      s32 expected = -1;
      const Inst* inst = nullptr;
      for (Warp& w : launch.warps) {
        alive += __builtin_popcount(w.alive);
        for (Group& g : w.groups)
          if (g.state == Group::kAtBarrier && g.barrier == id) {
            arrived += g.expected >= 0 && g.mask == w.alive ? 32 : __builtin_popcount(g.mask);
            if (inst && expected != g.expected)
              launch.report("barrier", w, launch.code[g.pc], __builtin_ctz(g.mask), 0,
                            "barrier with different numbers of threads", true);
            expected = g.expected;
            inst = &launch.code[g.pc];
          }
      }
      if (!inst || arrived < (expected < 0 ? alive : static_cast<u32>(expected))) continue;
      any = true;
      u32 yes = 0, all = 0;
      u32 latest[kLanes] = {};
      size_t warps = 0;
      for (Warp& w : launch.warps) {
        const Group* seen = nullptr;
        for (Group& g : w.groups) {
          if (g.state != Group::kAtBarrier || g.barrier != id) continue;
          if (seen && seen->pc != g.pc)
            launch.report("barrier", w, launch.code[g.pc], __builtin_ctz(g.mask), 0,
                          "lanes of a warp at different barrier instructions", false);
          if (!seen) {
            ++warps;
            w.known[w.index] = w.clock;
            for (int o = 0; o < kLanes; ++o) latest[o] = std::max(latest[o], w.known[o]);
          }
          seen = &g;
          const Inst& i = launch.code[g.pc];
          if (i.round) {
            const u32 p = w.pred(i.o[3]) ^ (i.flags & kNan ? kAll : 0);
            yes += __builtin_popcount(p & g.mask), all += __builtin_popcount(g.mask);
          }
        }
      }
      if (warps == launch.warps.size()) ++launch.epoch;
      for (Warp& w : launch.warps) {
        bool took = false;
        for (Group& g : w.groups) {
          if (g.state != Group::kAtBarrier || g.barrier != id) continue;
          const Inst& i = launch.code[g.pc];
          if (!took && !i.size) std::copy(latest, latest + kLanes, w.known);
          if (!took) ++w.clock;
          took = true;
          if (i.round == 1) each(g.mask, [&](int l) { w.row<u32>(i.o[2])[l] = yes; });
          if (i.round > 1) {
            const bool result = i.round == 2 ? yes == all : yes > 0;
            w.pred(i.o[2]) = (w.pred(i.o[2]) & ~g.mask) | (result ? g.mask : 0);
          }
          g.state = Group::kReady;
          ++g.pc;
        }
      }
    }
    return any;
  }

  void start_block() {
    const Config& c = launch.config;
    std::fill(launch.shared.begin(), launch.shared.end(), 0xff);
    std::fill(launch.cells.begin(), launch.cells.end(), Cell{});
    launch.readers.clear(), launch.free_readers.clear();
    launch.epoch = 0;
    const u32 threads = c.block[0] * c.block[1] * c.block[2];
    for (Warp& w : launch.warps) {
      const u32 first = w.index * kLanes, count = std::min<u32>(kLanes, threads - first);
      w.alive = count == kLanes ? kAll : (1u << count) - 1;
      w.clock = 1, w.serial = 0;
      std::fill(w.known, w.known + kLanes, 0);
      w.groups.assign(1, {0, w.alive, Group::kReady, 0, 0});
      w.copies.clear();
      for (int l = 0; l < kLanes; ++l) {
        const u32 t = first + l, eq = 1u << l;
        const u32 special[] = {t % c.block[0],
                               t / c.block[0] % c.block[1],
                               t / c.block[0] / c.block[1],
                               launch.block[0],
                               launch.block[1],
                               launch.block[2],
                               c.block[0],
                               c.block[1],
                               c.block[2],
                               c.grid[0],
                               c.grid[1],
                               c.grid[2],
                               static_cast<u32>(l),
                               static_cast<u32>(w.index),
                               static_cast<u32>(launch.warps.size()),
                               eq,
                               eq - 1,
                               (eq - 1) | eq,
                               ~(eq - 1),
                               ~(eq - 1) & ~eq,
                               c.dynamic_shared,
                               c.static_shared + c.dynamic_shared,
                               launch.block_number,
                               0};
        for (size_t n = 0; n < sizeof special / 4; ++n)
          w.row<u32>(static_cast<s32>(n) * 128)[l] = special[n];
      }
    }
  }

  void run_block() {
    start_block();
    while (true) {
      bool moved = false, left = false;
      for (Warp& w : launch.warps) moved |= run(w);
      moved |= release();
      for (Warp& w : launch.warps) left |= !w.groups.empty();
      if (!left) return;
      if (!moved) deadlock();
    }
  }

  void deadlock() {
    std::string what = "deadlock: no thread of the block can go on;";
    Warp* where = nullptr;
    const Group* at = nullptr;
    for (Warp& w : launch.warps)
      for (Group& g : w.groups) {
        if (what.size() < 2000)
          what += " warp " + std::to_string(w.index) + " lanes " + mask_text(g.mask) + " (of " +
                  mask_text(w.alive) + ") wait " +
                  (g.state == Group::kAtBarrier ? "at barrier " + std::to_string(g.barrier)
                                                : std::string("for lanes of the warp")) +
                  " at @" + std::to_string(g.pc) + ";";
        if (!where || g.state == Group::kMeeting) where = &w, at = &g;
      }
    launch.report("deadlock", *where, launch.code[at->pc], __builtin_ctz(at->mask), 0, what, true);
  }
};

}  // namespace

void run_blocks(Launch& launch) {
  const u32* grid = launch.config.grid;
  Runner runner{launch};
  for (u32 z = 0; z < grid[2]; ++z)
    for (u32 y = 0; y < grid[1]; ++y)
      for (u32 x = 0; x < grid[0]; ++x, ++launch.block_number) {
        launch.block[0] = x, launch.block[1] = y, launch.block[2] = z;
        runner.run_block();
      }
}

}  // namespace ptxrun
