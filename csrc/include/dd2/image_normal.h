// Arguments of the image noise kernels; plain data, shared by every native build.
#pragma once

namespace dd2 {

// Draws out = standard normals, `count` an image.
struct ImageNormalParams {
  float* out;                // [images, count]
  const long long* indices;  // [images]
  const long long* seeds;    // [images], or null for one seed
  long long seed;
  long long images;
  long long count;
  unsigned stream;  // last counter word
};

}  // namespace dd2
