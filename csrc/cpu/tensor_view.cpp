#include "cpu/tensor_view.h"

#include <algorithm>

namespace fastunlearn {

TensorView::TensorView(void* data, DType dtype, const int64_t* sizes, const int64_t* strides,
                       int dimensions)
    : data_(data), dtype_(dtype) {
  for (int d = 0; d < dimensions; ++d) {
    numel_ *= sizes[d];
    if (sizes[d] == 1) continue;
    if (!dims_.empty() && dims_.back().stride == sizes[d] * strides[d]) {
      dims_.back() = {dims_.back().size * sizes[d], strides[d]};
    } else {
      dims_.push_back({sizes[d], strides[d]});
    }
  }
  contiguous_ = numel_ == 0 || dims_.empty() || (dims_.size() == 1 && dims_[0].stride == 1);
  if (contiguous_) dims_.clear();
}

bool TensorView::same_as(const TensorView& other) const {
  const auto equal = [](const Dimension& a, const Dimension& b) {
    return a.size == b.size && a.stride == b.stride;
  };
  return data_ == other.data_ && dtype_ == other.dtype_ && numel_ == other.numel_ &&
         std::equal(dims_.begin(), dims_.end(), other.dims_.begin(), other.dims_.end(), equal);
}

const char* TensorView::end_bytes() const {
  if (contiguous_) return begin_bytes() + numel_ * item_bytes(dtype_);
  int64_t last = 0;
  for (const Dimension& dim : dims_) last += (dim.size - 1) * dim.stride;
  return begin_bytes() + (last + 1) * item_bytes(dtype_);
}

template <class T>
void TensorView::read_as(int64_t start, int count, float* out) const {
  const T* const data = static_cast<const T*>(data_);
  if (contiguous_) {
    for (int i = 0; i < count; ++i) out[i] = to_float32(data[start + i]);
    return;
  }
  const Dimension inner = dims_.back();
  while (count > 0) {  // one row of the innermost dimension at a time
    const int64_t column = start % inner.size;
    const int run = static_cast<int>(std::min<int64_t>(count, inner.size - column));
    const T* const row = data + offset(start);
    for (int i = 0; i < run; ++i) out[i] = to_float32(row[i * inner.stride]);
    out += run;
    start += run;
    count -= run;
  }
}

void TensorView::read(int64_t start, int count, float* out) const {
  dispatch(dtype_,
           [&](auto* type) { read_as<std::remove_pointer_t<decltype(type)>>(start, count, out); });
}

float TensorView::at(int64_t local) const {
  float out;
  read(local, 1, &out);
  return out;
}

}  // namespace fastunlearn
