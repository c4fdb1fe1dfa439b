// Shortcuts of the Python border.
//
// A loop over the parameters in Python costs microseconds for each of them. The functions here
// accept the common case in one pass: plain dense tensors, each with memory of its own. Whatever
// is unusual they leave to the Python code that each of them shortens, which accepts it or says
// what is wrong with it. So there are no messages here, and a doubt is a "no".
//
// The operations that write are called here too, through the dispatcher, with typed arguments:
// `torch.ops` boxes every tensor and every integer of their lists, and then takes them through the
// autograd keys, which do nothing for these operations.
#include "binding/border.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <pybind11/stl.h>
#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace fastunlearn {
namespace {

using Span = std::pair<std::uintptr_t, std::uintptr_t>;  // first byte, one past the last byte

constexpr std::int64_t kWidth = 3;  // layout: base, row_len, row_stride

// What a dense tensor of numbers carries, and no key of a wrapper, a view that is computed lazily
// (negation), or a tensor without memory.
constexpr c10::DispatchKeySet kPlainKeys({
    c10::DispatchKey::CPU,
    c10::DispatchKey::CUDA,
    c10::DispatchKey::ADInplaceOrView,
    c10::DispatchKey::AutogradCPU,
    c10::DispatchKey::AutogradCUDA,
    c10::DispatchKey::AutocastCPU,
    c10::DispatchKey::AutocastCUDA,
});

bool is_supported(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
}

// The tensor behind an object of the very class Tensor or Parameter (a subclass may mean anything
// by it), if it is dense, floating-point and has memory; else null.
const at::Tensor* plain_tensor(PyObject* object) {
  if (!THPVariable_CheckExact(object)) return nullptr;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  if (!tensor.defined()) return nullptr;
  const bool plain = (tensor.key_set().raw_repr() & ~kPlainKeys.raw_repr()) == 0;
  return plain && is_supported(tensor.scalar_type()) ? &tensor : nullptr;
}

// Whether the tensor may be written, and each of its elements has an address of its own.
bool is_writable(const at::Tensor& tensor) {
  return tensor.numel() > 0 && tensor.is_non_overlapping_and_dense() &&
         (!tensor.is_inference() || c10::InferenceMode::is_enabled());
}

Span span_of(const at::Tensor& tensor) {
  // To be read: clones that share memory until one is written stay as they are. Two of them in one
  // list seem to overlap, and are left to Python.
  const auto start = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr());
  return {start, start + static_cast<std::uintptr_t>(tensor.nbytes())};
}

bool are_disjoint(std::vector<Span>& spans) {
  std::sort(spans.begin(), spans.end());
  const auto meet = [](const Span& a, const Span& b) { return b.first < a.second; };
  return std::adjacent_find(spans.begin(), spans.end(), meet) == spans.end();
}

bool matches(const at::Tensor& tensor, const at::Tensor& score) {
  return tensor.sizes() == score.sizes() && tensor.device() == score.device();
}

void put(const py::list& list, std::int64_t place, py::object item) {
  PyList_SET_ITEM(list.ptr(), place, item.release().ptr());
}

py::tuple shape_of(const at::Tensor& tensor) {
  py::tuple shape(tensor.dim());
  for (std::int64_t i = 0; i < tensor.dim(); ++i) {
    PyTuple_SET_ITEM(shape.ptr(), i, PyLong_FromLongLong(tensor.size(i)));
  }
  return shape;
}

// What `survey` finds out about a list, one tensor after the other.
struct Survey {
  explicit Survey(std::int64_t count)
      : names(count), tensors(count), shapes(count), dtypes(count), layout(kWidth * count) {
    spans.reserve(count);
  }

  // Takes in the tensor number i; false where it is not plain.
  bool add(std::int64_t i, PyObject* object) {
    const at::Tensor* tensor = plain_tensor(object);
    if (tensor == nullptr || !is_writable(*tensor)) return false;
    if (i == 0) device = tensor->device();
    spans.push_back(span_of(*tensor));
    if (tensor->device() != device || spans.back().first == 0) return false;
    const std::int64_t numel = tensor->numel();
    put(tensors, i, py::reinterpret_borrow<py::object>(object));
    put(shapes, i, shape_of(*tensor));
    auto* dtype = reinterpret_cast<PyObject*>(torch::getTHPDtype(tensor->scalar_type()));
    put(dtypes, i, py::reinterpret_borrow<py::object>(dtype));
    put(layout, kWidth * i, py::int_(total));
    put(layout, kWidth * i + 1, py::int_(numel));
    put(layout, kWidth * i + 2, py::int_(numel));
    total += numel;
    return true;
  }

  py::list names, tensors, shapes, dtypes, layout;
  std::vector<Span> spans;
  c10::Device device = c10::kCPU;
  std::int64_t total = 0;
};

bool is_named(PyObject* item) {
  return PyTuple_CheckExact(item) && PyTuple_GET_SIZE(item) == 2 &&
         PyUnicode_CheckExact(PyTuple_GET_ITEM(item, 0));
}

// See targets.resolve. `items` are all tensors or all (name, tensor); returns (names or None,
// tensors, shapes, dtypes, layout, total), or None.
py::object survey(const py::list& items) {
  const auto count = static_cast<std::int64_t>(items.size());
  if (count == 0) return py::none();
  const bool named = is_named(PyList_GET_ITEM(items.ptr(), 0));
  Survey found(count);
  for (std::int64_t i = 0; i < count; ++i) {
    PyObject* item = PyList_GET_ITEM(items.ptr(), i);
    if (named) {
      if (!is_named(item)) return py::none();
      put(found.names, i, py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(item, 0)));
      item = PyTuple_GET_ITEM(item, 1);
    }
    if (!found.add(i, item)) return py::none();
  }
  if (!are_disjoint(found.spans)) return py::none();
  if (named && py::set(found.names).size() != found.names.size()) return py::none();
  py::object names = named ? py::object(std::move(found.names)) : py::none();
  return py::make_tuple(std::move(names), std::move(found.tensors), std::move(found.shapes),
                        std::move(found.dtypes), std::move(found.layout), found.total);
}

// See targets.with_gradients: the `.grad` of each tensor, or None.
py::object gradients(const py::list& tensors) {
  const auto count = static_cast<std::int64_t>(tensors.size());
  py::list found(count);
  for (std::int64_t i = 0; i < count; ++i) {
    const at::Tensor* tensor = plain_tensor(PyList_GET_ITEM(tensors.ptr(), i));
    if (tensor == nullptr) return py::none();
    // Not Tensor::grad(), which warns about tensors that never have one; Python does that.
    const at::Tensor& grad = tensor->unsafeGetTensorImpl()->grad();
    if (!grad.defined()) return py::none();
    put(found, i, py::reinterpret_steal<py::object>(THPVariable_Wrap(grad)));
    const at::Tensor* score = plain_tensor(PyList_GET_ITEM(found.ptr(), i));
    if (score == nullptr || !matches(*tensor, *score)) return py::none();
  }
  return std::move(found);
}

// See targets.match_scores: whether every score is plain and fits its tensor.
bool fit(const py::list& tensors, const py::list& scores) {
  if (tensors.size() != scores.size()) return false;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor* tensor = plain_tensor(PyList_GET_ITEM(tensors.ptr(), i));
    const at::Tensor* score = plain_tensor(PyList_GET_ITEM(scores.ptr(), i));
    if (tensor == nullptr || score == nullptr || !matches(*tensor, *score)) return false;
  }
  return true;
}

// See selection.tally: the first row of the statistics, and the sum of each column.
py::tuple tally(py::handle statistics) {
  const at::Tensor stats = THPVariable_Unpack(statistics.ptr()).cpu().contiguous();
  const std::int64_t rows = stats.size(0), columns = stats.size(1);
  const auto* data = stats.const_data_ptr<std::int64_t>();
  py::list first(rows == 0 ? 0 : columns), sums(columns);
  for (std::int64_t c = 0; c < columns; ++c) {
    std::int64_t sum = 0;
    for (std::int64_t r = 0; r < rows; ++r) sum += data[r * columns + c];
    put(sums, c, py::int_(sum));
    if (rows > 0) put(first, c, py::int_(data[c]));
  }
  return py::make_tuple(std::move(first), std::move(sums));
}

py::object wrap(at::Tensor tensor) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(std::move(tensor)));
}

// Appends the tensors of a list; false where one of them, or a function mode, may want to see the
// call in Python.
bool unpack(const py::list& list, std::vector<at::Tensor>& tensors) {
  if (at::impl::torch_function_mode_enabled()) return false;
  tensors.reserve(list.size());
  for (const py::handle item : list) {
    const at::Tensor* tensor = plain_tensor(item.ptr());
    if (tensor == nullptr) return false;
    tensors.push_back(*tensor);
  }
  return true;
}

// Calls an operation with the interpreter unlocked, as torch.ops does.
template <typename Signature, typename... Args>
py::object dispatch(const c10::TypedOperatorHandle<Signature>& operation, const Args&... args) {
  at::Tensor statistics;
  {
    const py::gil_scoped_release unlocked;
    const at::AutoDispatchBelowADInplaceOrView without_autograd;
    statistics = operation.call(args...);
  }
  return wrap(std::move(statistics));
}

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_operation(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>();
}

using Names = const std::string&;
using Integers = std::vector<std::int64_t>;

// The operations of fastunlearn/_ops.py, with its arguments; None where `unpack` declines.
py::object topk_perturb(const py::list& weights, const py::list& scores, py::handle scale,
                        py::handle rng, const Integers& k, bool per_tensor, Names score, Names nan,
                        Names noise, Names update, bool allow_overflow, const Integers& layout) {
  using Signature = at::Tensor(at::TensorList, at::TensorList, const at::Tensor&, const at::Tensor&,
                               at::IntArrayRef, bool, c10::string_view, c10::string_view,
                               c10::string_view, c10::string_view, bool, at::IntArrayRef);
  static const auto operation = find_operation<Signature>("fastunlearn::topk_perturb_");
  std::vector<at::Tensor> written, read;
  if (!unpack(weights, written) || !unpack(scores, read)) return py::none();
  return dispatch(operation, written, read, THPVariable_Unpack(scale.ptr()),
                  THPVariable_Unpack(rng.ptr()), k, per_tensor, score, nan, noise, update,
                  allow_overflow, layout);
}

py::object randomk_perturb(const py::list& weights, py::handle scale, py::handle rng,
                           const Integers& k, bool per_tensor, Names noise, Names update,
                           bool allow_overflow, const Integers& layout, std::int64_t total) {
  using Signature =
      at::Tensor(at::TensorList, const at::Tensor&, const at::Tensor&, at::IntArrayRef, bool,
                 c10::string_view, c10::string_view, bool, at::IntArrayRef, std::int64_t);
  static const auto operation = find_operation<Signature>("fastunlearn::randomk_perturb_");
  std::vector<at::Tensor> written;
  if (!unpack(weights, written)) return py::none();
  return dispatch(operation, written, THPVariable_Unpack(scale.ptr()),
                  THPVariable_Unpack(rng.ptr()), k, per_tensor, noise, update, allow_overflow,
                  layout, total);
}

// float64, shape (count,), all equal.
py::object filled(std::int64_t count, double value) {
  at::Tensor tensor = at::empty({count}, at::dtype(at::kDouble).device(at::kCPU));
  std::fill_n(tensor.mutable_data_ptr<double>(), count, value);
  return wrap(std::move(tensor));
}

// The op argument `rng`: int64, shape (2,), the seed as two's complement.
py::object rng_pair(std::uint64_t seed, std::int64_t step) {
  at::Tensor tensor = at::empty({2}, at::dtype(at::kLong).device(at::kCPU));
  auto* data = tensor.mutable_data_ptr<std::int64_t>();
  std::memcpy(data, &seed, sizeof seed);
  data[1] = step;
  return wrap(std::move(tensor));
}

}  // namespace

void register_border(py::module_& module) {
  const auto add = [&module](const char* name, auto function, const char* doc) {
    module.def(name, torch::wrap_pybind_function(function), doc);
  };
  add("survey", &survey, "Describe a list of plain disjoint tensors; None for any other.");
  add("gradients", &gradients, "Return the gradients where all are plain; else None.");
  add("fit", &fit, "Return whether all scores are plain and shaped like their tensors.");
  add("filled", &filled, "Return a float64 tensor of one value.");
  add("rng_pair", &rng_pair, "Return seed and step as an int64 tensor.");
  add("topk_perturb_", &topk_perturb, "Call the operation; None for unusual tensors.");
  add("randomk_perturb_", &randomk_perturb, "Call the operation; None for unusual tensors.");
  add("tally", &tally, "Return the first row of the statistics and the sums of columns.");
}

}  // namespace fastunlearn
