// A tensor of any strides, seen as its elements in logical row-major order.
#ifndef FASTUNLEARN_CPU_TENSOR_VIEW_H_
#define FASTUNLEARN_CPU_TENSOR_VIEW_H_

#include <cstdint>
#include <vector>

#include "core/half.h"
#include "core/params.h"

namespace fastunlearn {

// One dimension; neighbours that step alike are merged and sizes of 1 left out.
struct Dimension {
  int64_t size;
  int64_t stride;  // in elements
};

class TensorView {
 public:
  // data: address of the first element; not owned.
  TensorView(void* data, DType dtype, const int64_t* sizes, const int64_t* strides, int dimensions);

  void* data() const { return data_; }
  DType dtype() const { return dtype_; }
  int64_t numel() const { return numel_; }
  bool contiguous() const { return contiguous_; }
  bool same_as(const TensorView& other) const;

  // Addresses from the first byte to one past the last.
  const char* begin_bytes() const { return static_cast<const char*>(data_); }
  const char* end_bytes() const;

  // Distance in elements from the first element to element `local`.
  int64_t offset(int64_t local) const {
    if (contiguous_) return local;
    int64_t out = 0;
    for (size_t d = dims_.size(); d-- > 1;) {
      const int64_t outer = local / dims_[d].size;
      out += (local - outer * dims_[d].size) * dims_[d].stride;
      local = outer;
    }
    return out + local * dims_[0].stride;
  }

  // Elements start .. start + count as fp32 (fp64 rounded once); out: shape (count,).
  void read(int64_t start, int count, float* out) const;

  // One element as fp32.
  float at(int64_t local) const;

 private:
  template <class T>
  void read_as(int64_t start, int count, float* out) const;

  void* data_;
  DType dtype_;
  int64_t numel_ = 1;
  bool contiguous_ = true;
  std::vector<Dimension> dims_;  // outermost first; empty where contiguous
};

inline int64_t item_bytes(DType dtype) {
  if (dtype == DType::kFloat64) return 8;
  return dtype == DType::kFloat32 ? 4 : 2;
}

// Calls body(T*) with a null pointer of the storage type.
template <class Body>
inline auto dispatch(DType dtype, Body body) {
  switch (dtype) {
    case DType::kFloat64:
      return body(static_cast<double*>(nullptr));
    case DType::kBFloat16:
      return body(static_cast<BFloat16*>(nullptr));
    case DType::kFloat16:
      return body(static_cast<Float16*>(nullptr));
    case DType::kFloat32:
      break;
  }
  return body(static_cast<float*>(nullptr));
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_TENSOR_VIEW_H_
