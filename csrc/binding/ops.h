// The compiled CPU kernels as torch operations.
#ifndef FASTUNLEARN_BINDING_OPS_H_
#define FASTUNLEARN_BINDING_OPS_H_

namespace fastunlearn {

// Registers the kernels with torch, which calls them from then on; once, however often it is
// called.
void register_ops();

}  // namespace fastunlearn

#endif  // FASTUNLEARN_BINDING_OPS_H_
