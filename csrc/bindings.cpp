// Python module dd2_fast._C. An operator of operators.def is cpu_<name>(params, num_threads) and, with
// CUDA, cuda_<name>(params, stream), as far as it has such kernels. params is the address of its
// arguments: a struct of raw pointers and sizes, so one binary serves every torch version.
// plan_<name>(params, processors, shared) says how its GPU kernels are launched, CUDA or not: CuPy
// launches them too.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "cpu/dispatch.h"
#include "plan/plan.h"
#ifdef DD2_WITH_CUDA
#include "cuda/launch.h"
#endif

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

template <typename Params>
const Params& at(Address address) {
  return *reinterpret_cast<const Params*>(address);
}

// py::gil_scoped_release whose end lets through what stops a daemon thread as the interpreter ends:
// Python unwinds its stack, and would abort the process at a destructor that throws nothing.
struct ReleaseGil {
  PyThreadState* thread = PyEval_SaveThread();
  ~ReleaseGil() noexcept(false) { PyEval_RestoreThread(thread); }
};

// The size of the struct, then (offset, size) of each field.
py::tuple layout_tuple(const dd2::Layout& layout) {
  py::list fields;
  for (const dd2::Field& field : layout.fields) {
    fields.append(py::make_tuple(field.offset, field.size));
  }
  return py::make_tuple(layout.size, py::tuple(fields));
}

// Bytes of workspace, then (kernel, grid, threads, bytes of shared memory) of each launch.
py::tuple plan_tuple(const dd2::Plan& plan) {
  py::list launches;
  for (const dd2::Launch& l : plan.launches) {
    launches.append(py::make_tuple(dd2::name_of(l), py::make_tuple(l.grid[0], l.grid[1]),
                                   l.threads, l.shared));
  }
  return py::make_tuple(plan.workspace, launches);
}

template <typename Params>
void register_plan(py::module_& m, const char* name,
                   dd2::Plan (*plan)(const Params&, const dd2::Device&)) {
  m.def(name,
        [plan](Address params, long long processors, long long shared) {
          return plan_tuple(plan(at<Params>(params), {processors, shared}));
        },
        py::arg("params"), py::arg("processors"), py::arg("shared"));
}

template <typename Params>
void register_cpu(py::module_& m, const char* name, void (*launch)(const Params&, int)) {
  m.def(name,
        [launch](Address params, int num_threads) { launch(at<Params>(params), num_threads); },
        py::arg("params"), py::arg("num_threads"), py::call_guard<ReleaseGil>());
}

#ifdef DD2_WITH_CUDA
template <typename Params>
void register_cuda(py::module_& m, const char* name, void (*launch)(const Params&, void*)) {
  m.def(name,
        [launch](Address params, Address stream) {
          launch(at<Params>(params), reinterpret_cast<void*>(stream));
        },
        py::arg("params"), py::arg("stream"), py::call_guard<ReleaseGil>());
}

// Bytes that params.workspace had better point to on the current device.
template <typename Params>
void register_workspace(py::module_& m, const char* name,
                        dd2::Plan (*plan)(const Params&, const dd2::Device&)) {
  m.def(name,
        [plan](Address params) {
          return plan(at<Params>(params), dd2::cuda::current_device()).workspace;
        },
        py::arg("params"), py::call_guard<ReleaseGil>());
}
#endif

py::tuple cuda_architectures() {
#ifdef DD2_WITH_CUDA
  return py::cast(std::string(DD2_CUDA_ARCHS)).attr("split")(",").cast<py::tuple>();
#else
  return py::tuple();
#endif
}

// What a watched tensor was: where it lay, torch's count of its changes, and its first number of
// `size` bytes, 0 where that is not looked at. dd2_fast/models/watch.py packs these.
struct Seen {
  std::uint64_t address, version, size, number;
};

// Whether dicts still hold the objects `held`, in order, and tensors among them are as they were.
bool unchanged(const py::tuple& dicts, const py::tuple& held, const py::tuple& tensors,
               const py::bytes& seen) {
  static PyObject* const version = PyUnicode_InternFromString("_version");
  static PyObject* const address = PyUnicode_InternFromString("data_ptr");
  const auto number_of = [](PyObject* value) {
    if (value == nullptr) throw py::error_already_set();
    const std::uint64_t number = PyLong_AsUnsignedLongLongMask(value);
    Py_DECREF(value);
    return number;
  };
  Py_ssize_t count = 0;
  for (py::handle dict : dicts) {
    PyObject *key, *value;
    Py_ssize_t at = 0;
    while (PyDict_Next(dict.ptr(), &at, &key, &value)) {
      if (count >= PyTuple_GET_SIZE(held.ptr())) return false;
      if (PyTuple_GET_ITEM(held.ptr(), count++) != value) return false;
    }
  }
  if (count != PyTuple_GET_SIZE(held.ptr())) return false;
  const char* bytes = PyBytes_AS_STRING(seen.ptr());
  for (py::handle tensor : tensors) {
    Seen was;
    std::memcpy(&was, bytes, sizeof(was));
    bytes += sizeof(was);
    if (number_of(PyObject_CallMethodNoArgs(tensor.ptr(), address)) != was.address) return false;
    if (number_of(PyObject_GetAttr(tensor.ptr(), version)) != was.version) return false;
    const void* first = reinterpret_cast<const void*>(static_cast<Address>(was.address));
    if (was.size > 0 && std::memcmp(first, &was.number, was.size) != 0) return false;
  }
  return true;
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
  m.def("unchanged", &unchanged, "Whether watched tensors are as they were.");

  py::dict layouts;
#define DD2_CPU_OPERATOR(name, Params)                 \
  layouts[#name] = layout_tuple(dd2::layout_##name()); \
  register_cpu(m, "cpu_" #name, &dd2::cpu::launch_##name);
#define DD2_OPERATOR(name, Params)                         \
  layouts[#name] = layout_tuple(dd2::layout_##name());     \
  register_cpu(m, "cpu_" #name, &dd2::cpu::launch_##name); \
  register_plan(m, "plan_" #name, &dd2::plan_##name);
#define DD2_CUDA_OPERATOR(name, Params)                \
  layouts[#name] = layout_tuple(dd2::layout_##name()); \
  register_plan(m, "plan_" #name, &dd2::plan_##name);
#include "operators.def"
#undef DD2_OPERATOR
  m.attr("layouts") = layouts;

#ifdef DD2_WITH_CUDA
#define DD2_CPU_OPERATOR(name, Params)
#define DD2_OPERATOR(name, Params)                                 \
  register_cuda(m, "cuda_" #name, &dd2::cuda::launch_##name);      \
  register_workspace(m, "cuda_workspace_" #name, &dd2::plan_##name);
#define DD2_CUDA_OPERATOR DD2_OPERATOR
#include "operators.def"
#undef DD2_OPERATOR
  m.def("cuda_unusable", &dd2::cuda::unusable, "Why the current device runs no kernel, or None.");
#endif
}
