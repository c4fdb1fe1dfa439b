// The kernels for any machine.
#include <cstring>

#include "core/noise.h"
#include "cpu/kernels.h"
#include "cpu/lanes_portable.h"

namespace fastunlearn {
namespace {

#include "cpu/kernels_impl.h"

}  // namespace

const Kernels& kernels_portable() {
  static constexpr Kernels kTable = table<PortableLanes>();
  return kTable;
}

}  // namespace fastunlearn
