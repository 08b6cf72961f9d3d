// What Python calls.
#include <algorithm>

#include "engine.h"

namespace ptxrun {

Registry& registry() {
  static Registry all;
  return all;
}

}  // namespace ptxrun

using namespace ptxrun;

extern "C" {

struct Encoded {
  s32 handler, first;
  s64 imm;
  s32 target, guard;
  u8 kind, negated, space, flags, round, size, pad[2];
};

int ptxrun_handler(const char* name) {
  auto found = registry().index.find(name);
  return found == registry().index.end() ? -1 : found->second;
}

Launch* ptxrun_create(const Config* config, const Encoded* code, const s32* operands,
                      const Constant* constants) {
  auto* launch = new Launch();
  launch->config = *config;
  for (u32 n = 0; n < config->instructions; ++n) {
    const Encoded& e = code[n];
    launch->code.push_back({registry().handlers[e.handler], operands + e.first, e.imm, e.target,
                            e.guard, e.kind, e.negated, e.space, e.flags, e.round, e.size});
  }
  launch->counts.resize(config->instructions);
  const u32 threads = config->block[0] * config->block[1] * config->block[2];
  launch->warps.resize((threads + kLanes - 1) / kLanes);
  launch->files.resize(launch->warps.size() * size_t{config->file_bytes} + 64);
  u8* files = launch->files.data() + (64 - reinterpret_cast<u64>(launch->files.data()) % 64);
  const size_t shared = size_t{config->static_shared} + config->dynamic_shared;
  launch->shared.resize(shared + 64);
  if (config->races) launch->cells.resize(shared / config->grain + 16);
  for (size_t n = 0; n < launch->warps.size(); ++n) {
    Warp& w = launch->warps[n];
    w.launch = launch, w.index = static_cast<int>(n);
    w.file = files + n * config->file_bytes;
    w.local.assign(size_t{config->local_bytes} * kLanes, 0xff);
    for (u32 k = 0; k < config->constants; ++k)
      for (int l = 0; l < kLanes; ++l)
        std::memcpy(w.file + constants[k].offset + l * constants[k].width, &constants[k].value,
                    constants[k].width);
  }
  return launch;
}

void ptxrun_params(Launch* launch, const u8* data, u32 size) {
  launch->params.assign(data, data + size);
}

void ptxrun_range(Launch* launch, u64 first, u64 size, int writable) {
  auto range = std::make_unique<Range>();
  range->first = first, range->last = first + size, range->writable = writable;
  launch->ranges.push_back(std::move(range));
}

// 0, or 1 where a fault ended it.
int ptxrun_run(Launch* launch) {
  std::sort(launch->ranges.begin(), launch->ranges.end(),
            [](const auto& a, const auto& b) { return a->first < b->first; });
  try {
    run_blocks(*launch);
  } catch (const Fatal&) {
    return 1;
  }
  return 0;
}

const Count* ptxrun_counts(Launch* launch) { return launch->counts.data(); }
int ptxrun_faults(Launch* launch) { return static_cast<int>(launch->faults.size()); }
void ptxrun_fault(Launch* launch, int n, s32* numbers, u64* address, char* text, int size) {
  const Fault& f = launch->faults[n];
  const s32 all[] = {f.pc,       f.block[0], f.block[1],
                     f.block[2], f.thread,   launch->seen[{f.pc, f.kind}]};
  std::copy(all, all + 6, numbers);
  *address = f.address;
  snprintf(text, size, "%s\n%s", f.kind.c_str(), f.what.c_str());
}
void ptxrun_destroy(Launch* launch) { delete launch; }
}
