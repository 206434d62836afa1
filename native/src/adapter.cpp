#include "adapter.h"

#include <cmath>

namespace lora_core {
namespace {

float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float half(uint16_t bits) {
  const uint32_t sign = uint32_t{bits} >> 15 << 31, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 0) {
    const float small = std::ldexp(static_cast<float>(fraction), -24);
    return sign ? -small : small;
  }
  return float_of_bits(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
}

}  // namespace

float Matrix::at(uint64_t index) const {
  float value;
  if (type == "F32") {
    value = float_of_bits(static_cast<uint32_t>(number_at(data.data + 4 * index, 4)));
  } else {
    const auto bits = static_cast<uint16_t>(number_at(data.data + 2 * index, 2));
    value = type == "F16" ? half(bits) : float_of_bits(uint32_t{bits} << 16);
  }
  if (!std::isfinite(value)) damaged("a matrix holds NaN or infinity");
  return value;
}

bool Matrix::any() const {
  for (uint64_t index = 0; index < rows * columns; ++index) {
    if (at(index) != 0) return true;
  }
  return false;
}

Matrix matrix_of(const std::string& name, const StoredTensor& tensor) {
  if (tensor.shape.size() != 2 || tensor.shape[0] == 0 || tensor.shape[1] == 0) damaged("'" + name + "' is no matrix");
  return {tensor.shape[0], tensor.shape[1], tensor.type, tensor.data};
}

void check_ranks(const Adapter& adapter) {
  if (adapter.updates.empty()) damaged("the adapter has no matrices");
  for (const auto& [module, update] : adapter.updates) {
    if (update.a.rows == 0 || update.b.rows == 0) damaged(module + " has one matrix where two belong together");
    if (update.a.rows != update.b.columns) damaged("the matrices of " + module + " are of different ranks");
  }
}

}  // namespace lora_core
