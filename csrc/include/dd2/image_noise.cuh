// The noise of images in device kernels.
#pragma once

#include "dd2/block.cuh"
#include "dd2/box_muller.cuh"
#include "dd2/philox.cuh"

namespace dd2 {

DD2_DEVICE void normal_pair(unsigned radius_word, unsigned angle_word, float* pair) {
  const double radius = __builtin_sqrt(
      squared_radius<double>(static_cast<unsigned long long>(radius_word)));
  double cosine, sine;
  direction(static_cast<unsigned long long>(angle_word), cosine, sine);
  pair[0] = static_cast<float>(radius * cosine);
  pair[1] = static_cast<float>(radius * sine);
}

// The four numbers of an image's counter.
DD2_DEVICE void counter_normals(long long seed, long long image, long long counter, unsigned stream,
                                float (&normals)[4]) {
  const auto key = static_cast<unsigned long long>(seed);
  const auto index = static_cast<unsigned long long>(image);
  const PhiloxWords r = philox({{static_cast<unsigned>(counter), static_cast<unsigned>(index),
                                 static_cast<unsigned>(index >> 32), stream}},
                               static_cast<unsigned>(key), static_cast<unsigned>(key >> 32));
  normal_pair(r.word[0], r.word[1], normals);
  normal_pair(r.word[2], r.word[3], normals + 2);
}

}  // namespace dd2
