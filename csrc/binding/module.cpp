// The Python module `fastunlearn._C`: what this build is.
//
// Includes pybind11 and torch's version header rather than torch/extension.h, which alone costs
// most of a minute of compile time.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <string>

#include "core/simd.h"

#if !defined(FASTUNLEARN_VERSION) || !defined(FASTUNLEARN_CXX_FLAGS)
#error "FASTUNLEARN_VERSION and FASTUNLEARN_CXX_FLAGS come from setup.py: build through it"
#endif

namespace py = pybind11;

namespace fastunlearn {
namespace {

// Levels that this build holds kernels for.
constexpr SimdLevel kCompiledLevels[] = {SimdLevel::kPortable};

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
  info["simd_compiled"] = compiled_levels();
  info["simd_runtime"] = runtime_levels();
  info["build_type"] = build_type();
  return info;
}

}  // namespace
}  // namespace fastunlearn

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled kernels of fastunlearn";
  module.def("build_info", &fastunlearn::build_info,
             "Describe this build: compiler, flags, torch, CUDA and SIMD levels.");
}
