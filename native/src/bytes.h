// Ranges of bytes, and little-endian numbers in them, on any processor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "failure.h"

namespace lora_core {

struct Bytes {
  const uint8_t* data = nullptr;
  size_t size = 0;

  // Throws instead of reaching beyond the end.
  Bytes part(uint64_t offset, uint64_t length) const {
    if (offset > size || length > size - offset) damaged("an offset points behind the end");
    return {data + offset, static_cast<size_t>(length)};
  }
  std::string_view text() const { return {reinterpret_cast<const char*>(data), size}; }
};

inline Bytes bytes_of(std::string_view text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

inline void put_number(uint8_t* place, uint64_t value, unsigned width) {
  for (unsigned index = 0; index < width; ++index) place[index] = static_cast<uint8_t>(value >> (8 * index));
}

inline uint64_t number_at(const uint8_t* place, unsigned width) {
  uint64_t value = 0;
  for (unsigned index = width; index-- > 0;) value = value << 8 | place[index];
  return value;
}

inline uint64_t aligned(uint64_t offset, uint64_t alignment) { return (offset + alignment - 1) / alignment * alignment; }

// Throws instead of wrapping around.
inline uint64_t product(uint64_t a, uint64_t b) {
  if (b != 0 && a > UINT64_MAX / b) damaged("a size is too large");
  return a * b;
}

}  // namespace lora_core
