// The floor that benchmarks compare with: a read of memory and nothing else.
#ifndef FASTUNLEARN_CPU_READ_H_
#define FASTUNLEARN_CPU_READ_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace fastunlearn {

// Reads every whole 8-byte word of the ranges (address, bytes) once; returns their exclusive or, so
// that no compiler can leave the reads out.
uint64_t stream_read(const std::vector<std::pair<const void*, size_t>>& ranges, int threads);

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_READ_H_
