// The launches of csrc/cuda/dense_launch.cuh, run on the CPU; returns null or the error.
#include "tensor_shim.h"

#include "cuda/dense_launch.cuh"

namespace {

std::string message;

// `p` with a workspace of NaNs and a line more, to show writes past the end.
struct Workspace {
  std::vector<dd2_shim::SharedLine> lines;
  size_t bytes;

  explicit Workspace(dd2::ConditionalScoreParams& p)
      : bytes(static_cast<size_t>(dd2::DenseWorkspace::bytes(p))) {
    lines.resize(bytes / sizeof(dd2_shim::SharedLine) + 2);
    std::memset(lines.data(), 0xff, lines.size() * sizeof(dd2_shim::SharedLine));
    p.workspace = lines.data();
  }

  void check() const {
    const auto* first = reinterpret_cast<const unsigned char*>(lines.data());
    const auto* last = first + lines.size() * sizeof(dd2_shim::SharedLine);
    if (!std::all_of(first + bytes, last, [](unsigned char byte) { return byte == 0xff; })) {
      throw std::runtime_error("a kernel wrote past the workspace");
    }
  }
};

}  // namespace

extern "C" const char* dense_score(const dd2::ConditionalScoreParams* params, bool staged,
                                   bool reverse_order) {
  dd2_shim::reverse_order = reverse_order;
  fake_runtime::device = {staged ? size_t{227 * 1024} : 0, 0, /*processors=*/1, /*runs=*/true};
  dd2::ConditionalScoreParams p = *params;
  const Workspace workspace(p);
  try {
    switch (p.teacher.logit_type) {
      case dd2::LogitType::kFloat32:
        dd2::cuda::launch_dense_score<dd2::LogitType::kFloat32>(p, nullptr);
        break;
      case dd2::LogitType::kBFloat16:
        dd2::cuda::launch_dense_score<dd2::LogitType::kBFloat16>(p, nullptr);
        break;
      default: dd2::cuda::launch_dense_score<dd2::LogitType::kFloat16>(p, nullptr);
    }
    workspace.check();
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}
