// Python module dd2_fast._C: kernels take raw pointers, sizes and a stream, so one binary serves
// every torch version. One register line an operator.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "cpu/dispatch.h"
#include "dd2/conditional_score.h"
#include "dd2/flow_solve.h"
#include "dd2/image_normal.h"
#include "dd2/nearest_code.h"
#include "dd2/sample_code.h"
#ifdef DD2_WITH_CUDA
#include "cuda/launch.h"
#endif

namespace py = pybind11;

namespace {

// py::gil_scoped_release whose end lets through what stops a daemon thread as the interpreter ends:
// Python unwinds its stack, and would abort the process at a destructor that throws nothing.
struct ReleaseGil {
  PyThreadState* thread = PyEval_SaveThread();
  ~ReleaseGil() noexcept(false) { PyEval_RestoreThread(thread); }
};

template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

dd2::TeacherRows teacher_rows(std::uintptr_t logits, std::uintptr_t uncond, std::uintptr_t scale,
                              long long logits_stride, long long uncond_stride, long long rows,
                              long long vocabulary, long long top_k, float top_p, int logit_type) {
  return {pointer<const void>(logits), pointer<const void>(uncond), pointer<const float>(scale),
          logits_stride, uncond_stride, rows, vocabulary, top_k, top_p,
          static_cast<dd2::LogitType>(logit_type)};
}

dd2::ConditionalScoreParams conditional_score_params(
    const dd2::TeacherRows& teacher, std::uintptr_t out, std::uintptr_t jacobian,
    std::uintptr_t x_t, std::uintptr_t t, std::uintptr_t direction, std::uintptr_t codebook,
    long long draws, long long dim, const dd2::CsdLossParams& csd) {
  return {teacher, pointer<float>(out), pointer<float>(jacobian), pointer<const float>(x_t),
          pointer<const float>(t), pointer<const float>(direction), pointer<const float>(codebook),
          draws, dim, csd};
}

dd2::CsdLossParams csd_loss_params(std::uintptr_t x, std::uintptr_t fake, std::uintptr_t weight,
                                   std::uintptr_t loss, std::uintptr_t grad_x,
                                   std::uintptr_t grad_fake, std::uintptr_t grad_x_t, float alpha,
                                   bool dmd, float weight_power) {
  return {pointer<const float>(x), pointer<const float>(fake), pointer<const float>(weight),
          pointer<float>(loss), pointer<float>(grad_x), pointer<float>(grad_fake),
          pointer<float>(grad_x_t), alpha, dmd, weight_power};
}

dd2::FlowSolveParams flow_solve_params(const dd2::TeacherRows& teacher, std::uintptr_t out,
                                       std::uintptr_t noise, std::uintptr_t codebook,
                                       long long draws, long long dim, long long steps,
                                       bool heun) {
  return {teacher, pointer<long long>(out), pointer<const float>(noise),
          pointer<const float>(codebook), draws, dim, steps, heun};
}

dd2::ImageNormalParams image_normal_params(std::uintptr_t out, std::uintptr_t indices,
                                           std::uintptr_t seeds, long long seed, long long images,
                                           long long count, unsigned stream) {
  return {pointer<float>(out), pointer<const long long>(indices), pointer<const long long>(seeds),
          seed, images, count, stream};
}

dd2::NearestCodeParams nearest_code_params(std::uintptr_t out, std::uintptr_t x,
                                           std::uintptr_t codebook, long long rows,
                                           long long vocabulary, long long dim) {
  return {pointer<long long>(out), pointer<const float>(x), pointer<const float>(codebook), rows,
          vocabulary, dim};
}

dd2::SampleCodeParams sample_code_params(const dd2::TeacherRows& teacher, std::uintptr_t out,
                                         std::uintptr_t seed, std::uintptr_t index,
                                         float inverse_temperature) {
  return {teacher, pointer<long long>(out), pointer<const long long>(seed),
          pointer<const long long>(index), inverse_temperature};
}

// The operator as cpu_<name>(params, num_threads) and cuda_<name>(params, stream).
template <typename Params>
void register_cpu(py::module_& m, const char* name, void (*launch)(const Params&, int)) {
  m.def(name, launch, py::arg("params"), py::arg("num_threads"),
        py::call_guard<ReleaseGil>());
}

#ifdef DD2_WITH_CUDA
template <typename Params>
void register_cuda(py::module_& m, const char* name, void (*launch)(const Params&, void*)) {
  m.def(name,
        [launch](const Params& params, std::uintptr_t stream) {
          launch(params, reinterpret_cast<void*>(stream));
        },
        py::arg("params"), py::arg("stream"), py::call_guard<ReleaseGil>());
}
#endif

py::tuple cuda_architectures() {
#ifdef DD2_WITH_CUDA
  return py::cast(std::string(DD2_CUDA_ARCHS)).attr("split")(",").cast<py::tuple>();
#else
  return py::tuple();
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of dd2_fast; use them through dd2_fast.ops.";
  m.attr("cuda_architectures") = cuda_architectures();
  py::dict info;
  info["compiler"] = __VERSION__;
  info["cpu_instruction_set"] = dd2::cpu::instruction_set();
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#ifdef DD2_WITH_CUDA
  info["nvcc"] = DD2_NVCC_VERSION;
#endif
  m.attr("build_info") = info;

  using dd2::ConditionalScoreParams;
  using dd2::CsdLossParams;
  using dd2::TeacherRows;
  py::class_<TeacherRows>(m, "TeacherRows")
      .def(py::init(&teacher_rows), py::kw_only(), py::arg("logits"), py::arg("uncond"),
           py::arg("scale"), py::arg("logits_stride"), py::arg("uncond_stride"), py::arg("rows"),
           py::arg("vocabulary"), py::arg("top_k"), py::arg("top_p"), py::arg("logit_type"));
  py::class_<CsdLossParams>(m, "CsdLossParams")
      .def(py::init(&csd_loss_params), py::kw_only(), py::arg("x"), py::arg("fake"),
           py::arg("weight"), py::arg("loss"), py::arg("grad_x"), py::arg("grad_fake"),
           py::arg("grad_x_t"), py::arg("alpha"), py::arg("dmd"), py::arg("weight_power"));
  py::class_<ConditionalScoreParams>(m, "ConditionalScoreParams")
      .def(py::init(&conditional_score_params), py::kw_only(), py::arg("teacher"), py::arg("out"),
           py::arg("jacobian"), py::arg("x_t"), py::arg("t"), py::arg("direction"),
           py::arg("codebook"), py::arg("draws"), py::arg("dim"),
           py::arg("csd") = CsdLossParams{})
      .def("set_workspace", [](ConditionalScoreParams& params, std::uintptr_t address) {
        params.workspace = pointer<void>(address);
      });
  py::class_<dd2::FlowSolveParams>(m, "FlowSolveParams")
      .def(py::init(&flow_solve_params), py::kw_only(), py::arg("teacher"), py::arg("out"),
           py::arg("noise"), py::arg("codebook"), py::arg("draws"), py::arg("dim"),
           py::arg("steps"), py::arg("heun"));
  py::class_<dd2::ImageNormalParams>(m, "ImageNormalParams")
      .def(py::init(&image_normal_params), py::kw_only(), py::arg("out"), py::arg("indices"),
           py::arg("seeds"), py::arg("seed"), py::arg("images"), py::arg("count"),
           py::arg("stream"));
  py::class_<dd2::NearestCodeParams>(m, "NearestCodeParams")
      .def(py::init(&nearest_code_params), py::kw_only(), py::arg("out"), py::arg("x"),
           py::arg("codebook"), py::arg("rows"), py::arg("vocabulary"), py::arg("dim"));
  py::class_<dd2::SampleCodeParams>(m, "SampleCodeParams")
      .def(py::init(&sample_code_params), py::kw_only(), py::arg("teacher"), py::arg("out"),
           py::arg("seed"), py::arg("index"), py::arg("inverse_temperature"));
  register_cpu(m, "cpu_conditional_score", &dd2::cpu::launch_conditional_score);
  register_cpu(m, "cpu_flow_solve", &dd2::cpu::launch_flow_solve);
  register_cpu(m, "cpu_image_normal", &dd2::cpu::launch_image_normal);
  register_cpu(m, "cpu_nearest_code", &dd2::cpu::launch_nearest_code);
  register_cpu(m, "cpu_sample_code", &dd2::cpu::launch_sample_code);
#ifdef DD2_WITH_CUDA
  m.def("cuda_unusable", &dd2::cuda::unusable, "Why the current device runs no kernel, or None.");
  register_cuda(m, "cuda_conditional_score", &dd2::cuda::launch_conditional_score);
  register_cuda(m, "cuda_flow_solve", &dd2::cuda::launch_flow_solve);
  m.def("cuda_conditional_score_workspace", &dd2::cuda::conditional_score_workspace,
        py::arg("params"), py::call_guard<ReleaseGil>());
  register_cuda(m, "cuda_image_normal", &dd2::cuda::launch_image_normal);
  register_cuda(m, "cuda_nearest_code", &dd2::cuda::launch_nearest_code);
  register_cuda(m, "cuda_sample_code", &dd2::cuda::launch_sample_code);
#endif
}
