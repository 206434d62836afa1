// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <string>

#include "bytes.h"

namespace lora_core {

class Sha256 {
 public:
  void update(Bytes bytes);
  std::string hex();  // of everything so far; ends the hashing

 private:
  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> block_ = {};
  size_t filled_ = 0;
  uint64_t length_ = 0;
};

std::string sha256(Bytes bytes);

// One after the other, for tests: what this processor runs, and what every processor can.
using Compress = void (*)(uint32_t* state, const uint8_t* blocks, size_t count);
Compress fastest_compress();
void portable_compress(uint32_t* state, const uint8_t* blocks, size_t count);

}  // namespace lora_core
