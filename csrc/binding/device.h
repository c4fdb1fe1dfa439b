// What the operations of device_ops.cpp need of the device: CUDA, or the CPU where the tests run
// the kernels without a GPU (FASTUNLEARN_SIMT).
#ifndef FASTUNLEARN_BINDING_DEVICE_H_
#define FASTUNLEARN_BINDING_DEVICE_H_

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#ifdef FASTUNLEARN_SIMT
#include <cstdlib>
#include <cstring>
#else
#include <c10/cuda/CUDAException.h>
#endif

#include <cstddef>
#include <vector>

#include "cuda/table.h"

namespace fastunlearn {

#ifdef FASTUNLEARN_SIMT

inline constexpr at::DeviceType kDeviceType = at::kCPU;
inline constexpr c10::DispatchKey kDispatchKey = c10::DispatchKey::CPU;

inline cuda::Device current_device(at::Device) { return {3, nullptr}; }

inline void check(cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, "simt: error ", static_cast<int>(error));
}

inline void refuse_earlier_error() {}

// Memory of the CPU is the device's; a variable of the environment says how it is to be taken.
inline bool is_on_device(const at::Tensor&) { return std::getenv("SIMT_POINTERS") != nullptr; }

// Dirty, as memory that was used before.
inline at::Tensor allocate(size_t bytes, at::Device) {
  at::Tensor room = at::empty({static_cast<int64_t>(bytes) + 1}, at::kByte);
  std::memset(room.mutable_data_ptr(), 0xA5, bytes);
  return room;
}

// There is one device.
class Peers {
 public:
  Peers(at::TensorList, at::TensorList, at::Device) {}
  void finish() {}
};

#else

inline constexpr at::DeviceType kDeviceType = at::kCUDA;
inline constexpr c10::DispatchKey kDispatchKey = c10::DispatchKey::CUDA;

// The device, with the stream that is current on it.
cuda::Device current_device(at::Device device);

inline void check(cudaError_t error) { C10_CUDA_CHECK(error); }

// Throws where an earlier call of this thread has left an error: the launches would take it for
// theirs, and stop half-way.
void refuse_earlier_error();

inline bool is_on_device(const at::Tensor& tensor) { return tensor.is_cuda(); }

// One byte more than is asked for, so that the pointer is never null.
inline at::Tensor allocate(size_t bytes, at::Device device) {
  return at::empty({static_cast<int64_t>(bytes) + 1}, at::TensorOptions(device).dtype(at::kByte));
}

// Until it is finished, kernels on `home` may work on tensors of other devices: they run after what
// was started there, and what is started there later waits for them. Streams wait, the host does
// not.
class Peers {
 public:
  // Throws where the memory of a device cannot be reached from `home`.
  Peers(at::TensorList weights, at::TensorList scores, at::Device home);
  // For calls that an exception ends: warns where `finish` throws.
  ~Peers();
  // Throws the errors that the devices have met.
  void finish();
  Peers(const Peers&) = delete;
  Peers& operator=(const Peers&) = delete;

 private:
  at::Device home_;
  std::vector<at::Device> others_;
};

#endif

}  // namespace fastunlearn

#endif  // FASTUNLEARN_BINDING_DEVICE_H_
