// A row of logits in shared memory, divided among the threads of a block.
//
// A share is neighbouring codes: the logits that matter are moved together in place, in the order of
// their codes, without a word from one thread to another.
#pragma once

#include "dd2/guided_row.cuh"

namespace dd2 {

template <int kBlock>
struct RowShare {
  SharedAddress begin, end;  // of fours

  // Fours of every share but the last ones: an odd number, so that no two of eight lanes read the
  // same banks.
  DD2_DEVICE static int most(int vocabulary) {
    return static_cast<unsigned>(vocabulary + 4 * kBlock - 1) / (4u * kBlock) | 1;
  }

  DD2_DEVICE RowShare(float* staged, int vocabulary) {
    const int size = most(vocabulary), first = size * static_cast<int>(threadIdx.x);
    const int left = static_cast<int>((vocabulary + 3u) / 4) - first;
    begin = shared_address(staged) + 16 * first;
    end = begin + 16 * Max()(Min()(left, size), 0);
  }

  // Drops the logits below `floor`, and fills the last four with `filler`.
  DD2_DEVICE void keep_from(float floor, float filler) {
    SharedAddress next = begin, four = begin;
    const auto keep = [&](const float4& v) {
      keep_in_shared(next, v.x, floor);
      keep_in_shared(next, v.y, floor);
      keep_in_shared(next, v.z, floor);
      keep_in_shared(next, v.w, floor);
    };
    DD2_NO_UNROLL
    for (; four + 16 * kLoadsAhead <= end; four += 16 * kLoadsAhead) {
      float4 loaded[kLoadsAhead];
      for (int n = 0; n < kLoadsAhead; ++n) loaded[n] = load_four_of_shared(four + 16 * n);
      for (int n = 0; n < kLoadsAhead; ++n) keep(loaded[n]);
    }
    DD2_NO_UNROLL
    for (; four < end; four += 16) keep(load_four_of_shared(four));
    end = begin + (next - begin + 15) / 16 * 16;
    while (next != end) keep_in_shared(next, filler, filler);
  }
};

template <int kThreadsOfShare, int kBlock, typename Visit>
DD2_DEVICE void for_each_logits(const RowShare<kBlock>& share, int, const Visit& visit) {
  static_assert(kThreadsOfShare == kBlock, "a share a thread");
  const auto visit_four = [&](const float4& v) { visit(Logits<4>{{v.x, v.y, v.z, v.w}}); };
  // Side by side, also where shares are not equally long.
  SharedAddress four = share.begin;
  DD2_NO_UNROLL
  for (; four + 16 < share.end; four += 32) {
    const float4 first = load_four_of_shared(four), second = load_four_of_shared(four + 16);
    visit_four(first);
    visit_four(second);
  }
  if (four < share.end) visit_four(load_four_of_shared(four));
}

}  // namespace dd2
