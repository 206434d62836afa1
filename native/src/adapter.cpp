#include "adapter.h"

#include <cmath>

namespace lora_core {
namespace {

float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float half(uint32_t bits) {
  const uint32_t sign = bits >> 15 << 31, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 0) {
    const float small = static_cast<float>(fraction) * 0x1p-24f;  // exact
    return sign ? -small : small;
  }
  return float_of_bits(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
}

uint32_t short_at(const uint8_t* place) { return uint32_t{place[0]} | uint32_t{place[1]} << 8; }

unsigned width_of(Type type) { return type == Type::kFloat ? 4 : 2; }

}  // namespace

void Matrix::row(uint64_t index, float* values) const {
  const uint8_t* place = data.data + index * columns * width_of(type);
  switch (type) {
    case Type::kFloat:
      std::memcpy(values, place, columns * sizeof(float));
      break;
    case Type::kHalf:
      for (uint64_t column = 0; column < columns; ++column) values[column] = half(short_at(place + 2 * column));
      break;
    case Type::kBrain:
      for (uint64_t column = 0; column < columns; ++column) {
        values[column] = float_of_bits(short_at(place + 2 * column) << 16);
      }
  }
  bool finite = true;
  for (uint64_t column = 0; column < columns; ++column) finite &= std::isfinite(values[column]);
  if (!finite) damaged("a matrix holds NaN or infinity");
}

bool Matrix::any() const {
  const unsigned width = width_of(type);
  for (uint64_t place = 0; place < data.size; ++place) {
    const unsigned sign = place % width == width - 1 ? 0x7f : 0xff;  // minus zero is zero
    if ((data.data[place] & sign) != 0) return true;
  }
  return false;
}

Matrix matrix_of(const std::string& name, const StoredTensor& tensor) {
  if (tensor.shape.size() != 2 || tensor.shape[0] == 0 || tensor.shape[1] == 0) damaged("'" + name + "' is no matrix");
  const Type type = tensor.type == "F32" ? Type::kFloat : tensor.type == "F16" ? Type::kHalf : Type::kBrain;
  return {tensor.shape[0], tensor.shape[1], type, tensor.data};
}

void check_ranks(const Adapter& adapter) {
  if (adapter.updates.empty()) damaged("the adapter has no matrices");
  for (const auto& [module, update] : adapter.updates) {
    if (update.a.rows == 0 || update.b.rows == 0) damaged(module + " has one matrix where two belong together");
    if (update.a.rows != update.b.columns) damaged("the matrices of " + module + " are of different ranks");
  }
}

}  // namespace lora_core
