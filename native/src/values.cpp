#include "values.h"

#include <cmath>

#include "sha256.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "floats are written as they lie in memory, which must be little-endian"
#endif

namespace lora_core {

Values::Values(const Adapter& adapter, double strength) : adapter_(adapter), strength_(strength) {
  if (!std::isfinite(strength)) fail(LORA_CORE_UNSUPPORTED, "the strength is no finite number");
}

Bytes Values::of(const SlotTensor& tensor, const Slot& slot) {
  values_.assign(tensor.rows * tensor.columns, 0.0f);
  const Update* update = effective(tensor.module);
  if (update == nullptr) {
    if (tensor.is_a) fill_idle(slot);
  } else if (tensor.is_a) {
    for (uint64_t row = 0; row < update->a.rows; ++row) update->a.row(row, values_.data() + row * update->a.columns);
  } else {
    fold_b(*update, slot.rank);
  }
  return {reinterpret_cast<const uint8_t*>(values_.data()), values_.size() * sizeof(float)};
}

std::string Values::key_of(const SlotTensor& tensor, const Slot& slot) {
  if (effective(tensor.module) != nullptr) return sha256(of(tensor, slot));
  std::string& key = idle_keys_[{uint64_t{tensor.is_a}, tensor.rows, tensor.columns}];
  if (key.empty()) key = sha256(of(tensor, slot));
  return key;
}

const Update* Values::effective(const std::string& module) {
  const auto known = effective_.find(module);
  if (known != effective_.end()) return known->second;
  const auto found = adapter_.updates.find(module);
  const bool idle = found == adapter_.updates.end() || !found->second.a.any();
  return effective_[module] = idle ? nullptr : &found->second;
}

// slot_tensors.py: a zero A would be taken for a zero B by XNNPACK's weight cache (ExecuTorch 1.5.1).
void Values::fill_idle(const Slot& slot) {
  const auto bits = static_cast<double>(slot.rank << 16 | slot.in_features);
  values_.assign(values_.size(), static_cast<float>(std::ldexp(bits, -32)));
}

void Values::fold_b(const Update& update, uint64_t rank) {
  const double scaling = update.scaling * strength_;
  const auto factor = static_cast<float>(scaling);
  bool finite = true;
  for (uint64_t row = 0; row < update.b.rows; ++row) {
    float* values = values_.data() + row * rank;
    update.b.row(row, values);
    for (uint64_t column = 0; scaling != 1.0 && column < update.b.columns; ++column) {
      values[column] *= factor;
      finite &= std::isfinite(values[column]);
    }
  }
  if (!finite) damaged("B times its scaling is more than float32 holds");
}

}  // namespace lora_core
