// The Python module `fastunlearn._C`: what this build is, and its kernels where it fits.
//
// Includes pybind11 and torch's version header rather than torch/extension.h, which alone costs
// most of a minute of compile time.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <string>
#include <utility>
#include <vector>

#include "binding/backend.h"
#include "binding/border.h"
#include "binding/ops.h"
#include "cpu/read.h"

#if !defined(FASTUNLEARN_VERSION) || !defined(FASTUNLEARN_CXX_FLAGS)
#error "FASTUNLEARN_VERSION and FASTUNLEARN_CXX_FLAGS come from setup.py: build through it"
#endif

namespace py = pybind11;

namespace fastunlearn {
namespace {

// Levels that this build holds kernels for.
#if defined(__x86_64__)
constexpr SimdLevel kCompiledLevels[] = {SimdLevel::kPortable, SimdLevel::kAvx2,
                                         SimdLevel::kAvx512};
#else
constexpr SimdLevel kCompiledLevels[] = {SimdLevel::kPortable};
#endif

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::object cuda_version() {
#ifdef FASTUNLEARN_CUDA_VERSION
  return py::str(FASTUNLEARN_CUDA_VERSION);
#else
  return py::bool_(false);
#endif
}

py::object cuda_archs() {
#ifdef FASTUNLEARN_CUDA_ARCHS
  return py::str(FASTUNLEARN_CUDA_ARCHS);
#else
  return py::bool_(false);
#endif
}

const char* build_type() {
#if defined(NDEBUG) && defined(__OPTIMIZE__)
  return "release";
#else
  return "debug";
#endif
}

py::list compiled_levels() {
  py::list names;
  for (const SimdLevel level : kCompiledLevels) names.append(simd_name(level));
  return names;
}

py::list runtime_levels() {
  py::list names;
  for (const SimdLevel level : kSimdLevels) {
    if (simd_supported(level)) names.append(simd_name(level));
  }
  return names;
}

py::dict build_info() {
  py::dict info;
  info["version"] = FASTUNLEARN_VERSION;
  info["compiler"] = compiler();
  info["cxx_flags"] = FASTUNLEARN_CXX_FLAGS;
  info["cxx_standard"] = __cplusplus / 100 % 100;
  info["torch"] = TORCH_VERSION;
  info["cuda"] = cuda_version();
  info["cuda_archs"] = cuda_archs();
  info["simd_compiled"] = compiled_levels();
  info["simd_runtime"] = runtime_levels();
  info["build_type"] = build_type();
  return info;
}

// Apart from the import: a build of another version is imported too, to be asked what it is.
void register_kernels() {
  simd_level();  // a wrong FASTUNLEARN_SIMD fails here, not in the first call
  register_ops();
#ifdef FASTUNLEARN_CUDA_VERSION
  register_device_ops();
#endif
}

// Reads the memory of contiguous CPU tensors, on so many threads.
uint64_t read_tensors(const std::vector<py::object>& tensors, int threads) {
  std::vector<std::pair<const void*, size_t>> ranges;
  for (const py::object& tensor : tensors) {
    const auto device = tensor.attr("device").attr("type").cast<std::string>();
    if (device != "cpu" || !tensor.attr("is_contiguous")().cast<bool>()) {
      throw py::value_error("stream_read: tensors must be contiguous and on the CPU, got " +
                            py::repr(tensor.attr("stride")()).cast<std::string>() +
                            " as strides on " + device);
    }
    const auto address = tensor.attr("data_ptr")().cast<uintptr_t>();
    ranges.emplace_back(reinterpret_cast<const void*>(address),
                        tensor.attr("nbytes").cast<size_t>());
  }
  const py::gil_scoped_release unlocked;
  return stream_read(ranges, threads);
}

}  // namespace
}  // namespace fastunlearn

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled kernels of fastunlearn";
  module.def("build_info", &fastunlearn::build_info,
             "Describe this build: compiler, flags, torch, CUDA and SIMD levels.");
  module.def("register_kernels", &fastunlearn::register_kernels,
             "Let torch use the kernels. ValueError where FASTUNLEARN_SIMD is wrong.");
  module.def(
      "get_simd", [] { return std::string(fastunlearn::simd_name(fastunlearn::simd_level())); },
      "Name of the SIMD level in use.");
  module.def("set_simd", &fastunlearn::set_simd_level, py::arg("name"),
             "Choose the SIMD level; all give the same bits. ValueError where the CPU lacks it.");
  module.def("stream_read", &fastunlearn::read_tensors, py::arg("tensors"), py::arg("threads"),
             "Read the memory of contiguous CPU tensors once: the floor of a benchmark.");
  fastunlearn::register_border(module);
}
