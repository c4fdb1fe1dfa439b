// The compiled kernels as torch operations.
#ifndef FASTUNLEARN_BINDING_OPS_H_
#define FASTUNLEARN_BINDING_OPS_H_

namespace fastunlearn {

// Registers the kernels with torch, which calls them from then on; once, however often it is
// called.
void register_ops();

// The same for the kernels of CUDA, where the build has them.
void register_device_ops();

}  // namespace fastunlearn

#endif  // FASTUNLEARN_BINDING_OPS_H_
