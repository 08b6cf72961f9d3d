// Functions of the kernels' headers on the CPU.
#include "dd2/box_muller.cuh"
#include "dd2/philox.cuh"

using namespace dd2;

extern "C" void box_muller(unsigned radius_word, unsigned angle_word, double* out) {
  out[0] = squared_radius<double>(static_cast<unsigned long long>(radius_word));
  direction(static_cast<unsigned long long>(angle_word), out[1], out[2]);
}

extern "C" void philox(const unsigned* counter, const unsigned* key, unsigned* out) {
  const PhiloxWords words =
      dd2::philox({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  for (int i = 0; i < 4; ++i) out[i] = words.word[i];
}

extern "C" double row_uniform(long long seed, long long row, unsigned stream) {
  return dd2::row_uniform(seed, row, stream);
}
