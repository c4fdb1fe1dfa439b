// bfloat16 and float16 conversions against a file that the driver made with torch:
//   uint32[65536]  fp32 bits of every fp16 pattern
//   uint32[65536]  fp32 bits of every bf16 pattern
//   then records {uint32 fp32 bits, uint16 fp16 bits, uint16 bf16 bits} to the end
#include "core/half.h"

#include <cstdint>
#include <cstdio>
#include <vector>

#include "check.h"
#include "core/lanes.h"

namespace {

using fastunlearn::BFloat16;
using fastunlearn::Float16;
using fastunlearn::ScalarLanes;
using fastunlearn::testing::equal;
using fastunlearn::testing::holds;

struct Record {
  uint32_t fp32;
  uint16_t fp16;
  uint16_t bf16;
};

bool is_nan(uint32_t bits) { return (bits & 0x7FFFFFFFu) > 0x7F800000u; }

// A NaN may come with any payload from the way up; from the way down it has the default one.
template <class Half>
void check_pattern(uint16_t pattern, uint32_t expected, Half (*narrow)(float), uint16_t nan) {
  const float wide = to_float32(Half{pattern});
  const uint32_t bits = ScalarLanes::bits(wide);
  if (is_nan(expected)) {
    holds(is_nan(bits), "pattern is NaN", pattern);
    equal(narrow(wide).bits, nan, "default NaN", pattern);
  } else {
    equal(bits, expected, "to_float32", pattern);
    equal(narrow(wide).bits, pattern, "there and back", pattern);
  }
}

void check_record(const Record& record) {
  const float x = ScalarLanes::from_bits(record.fp32);
  equal(fastunlearn::to_float16(x).bits, record.fp16, "to_float16", record.fp32);
  equal(fastunlearn::to_bfloat16(x).bits, record.bf16, "to_bfloat16", record.fp32);
}

}  // namespace

int main(int argc, char** argv) {
  constexpr int kPatterns = 1 << 16;
  std::FILE* file = argc == 2 ? std::fopen(argv[1], "rb") : nullptr;
  std::vector<uint32_t> tables(2 * kPatterns);
  if (file == nullptr || std::fread(tables.data(), 4, tables.size(), file) != tables.size()) {
    std::puts("half: argument must be a file with both tables");
    return 2;
  }
  for (int i = 0; i < kPatterns; ++i) {
    const auto pattern = static_cast<uint16_t>(i);
    check_pattern<Float16>(pattern, tables[i], fastunlearn::to_float16, 0x7E00);
    check_pattern<BFloat16>(pattern, tables[kPatterns + i], fastunlearn::to_bfloat16, 0x7FC0);
  }
  for (Record record; std::fread(&record, sizeof(record), 1, file) == 1;) check_record(record);
  std::fclose(file);
  return fastunlearn::testing::finish();
}
