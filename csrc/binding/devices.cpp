// CUDA devices: what is known of each, and work on the memory of several.
#include <c10/core/Event.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <utility>

#include "binding/device.h"

namespace fastunlearn {
namespace {

int multiprocessors(c10::DeviceIndex device) {
  static std::array<std::atomic<int>, C10_COMPILE_TIME_MAX_GPUS> known;  // 0: not asked yet
  std::atomic<int>& count = known[static_cast<size_t>(device)];
  if (count == 0) {
    int found = 0;
    check(cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device));
    count = found;
  }
  return count;
}

void make_reachable(at::Device from, at::Device other) {
  int reachable = 0;
  check(cudaDeviceCanAccessPeer(&reachable, from.index(), other.index()));
  TORCH_CHECK_VALUE(reachable != 0,
                    "fastunlearn: parameters must lie on devices that reach each other's memory,",
                    " got ", from, " and ", other);
  // Through the allocator, which may have mapped its memory for one device alone.
  c10::cuda::CUDACachingAllocator::enablePeerAccess(from.index(), other.index());
}

// What is started on a device from now on runs after what was started on the other one.
void wait(at::Device waiting, at::Device other) {
  c10::Event event(at::kCUDA);
  event.record(c10::cuda::getCurrentCUDAStream(other.index()).unwrap());
  event.block(c10::cuda::getCurrentCUDAStream(waiting.index()).unwrap());
}

}  // namespace

cuda::Device current_device(at::Device device) {
  return {multiprocessors(device.index()), c10::cuda::getCurrentCUDAStream(device.index())};
}

void refuse_earlier_error() {
  const cudaError_t error = cudaPeekAtLastError();
  TORCH_CHECK(error == cudaSuccess, "fastunlearn: nothing was started, since an earlier CUDA call",
              " of this thread has failed: ", cudaGetErrorString(error));
}

Peers::Peers(at::TensorList weights, at::TensorList scores, at::Device home) : home_(home) {
  for (const at::TensorList list : {weights, scores}) {
    for (const at::Tensor& tensor : list) {
      const at::Device device = tensor.device();
      if (device == home_) continue;
      if (std::find(others_.begin(), others_.end(), device) != others_.end()) continue;
      others_.push_back(device);
    }
  }
  for (const at::Device other : others_) make_reachable(home_, other);
  for (const at::Device other : others_) wait(home_, other);
}

Peers::~Peers() {
  try {
    finish();
  } catch (const std::exception& error) {
    TORCH_WARN("fastunlearn: other devices do not wait for ", home_, ": ", error.what());
  }
}

void Peers::finish() {
  for (const at::Device other : std::exchange(others_, {})) wait(other, home_);
}

}  // namespace fastunlearn
