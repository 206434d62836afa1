#include "flatbuffer.h"

namespace lora_core {

void FlatbufferBuilder::prepare(uint64_t size, uint64_t more) {
  if (size > min_align_) min_align_ = size;
  for (uint64_t padding = (~(offset() + more) + 1) & (size - 1); padding > 0; --padding) reversed_.push_back(0);
}

void FlatbufferBuilder::place(uint64_t value, unsigned width) {
  for (unsigned index = width; index-- > 0;) reversed_.push_back(static_cast<uint8_t>(value >> (8 * index)));
}

void FlatbufferBuilder::place_reference(uint64_t target) {
  prepare(4, 0);
  if (target > offset()) damaged("the template's tail has impossible offsets");
  place(offset() - target + 4, 4);
}

void FlatbufferBuilder::start_table(unsigned fields) {
  fields_.assign(fields, 0);
  table_end_ = offset();
}

void FlatbufferBuilder::number(unsigned field, uint64_t value, unsigned width) {
  if (value != 0) scalar(field, value, width);
}

void FlatbufferBuilder::scalar(unsigned field, uint64_t value, unsigned width) {
  prepare(width, 0);
  place(value, width);
  fields_[field] = offset();
}

void FlatbufferBuilder::reference(unsigned field, uint64_t target) {
  if (target == 0) return;
  place_reference(target);
  fields_[field] = offset();
}

uint64_t FlatbufferBuilder::end_table() {
  prepare(4, 0);
  place(0, 4);  // the distance to the vtable, filled in below
  const uint64_t table = offset();
  const size_t distance = reversed_.size();
  VtableKey key;
  for (size_t index = fields_.size(); index-- > 0;) {
    if (fields_[index] == 0 && key.empty()) continue;
    key.push_back(fields_[index] == 0 ? 0 : table - fields_[index]);
  }
  const size_t entries = key.size();
  const uint64_t size = table - table_end_;
  key.push_back(size);
  uint64_t vtable;
  if (const auto known = vtables_.find(key); known != vtables_.end()) {
    vtable = known->second;
  } else {
    for (size_t index = 0; index < entries; ++index) prepare(2, 0), place(key[index], 2);
    prepare(2, 0), place(size, 2);
    prepare(2, 0), place(2 * (entries + 2), 2);
    vtable = offset();
    vtables_.emplace(std::move(key), vtable);
  }
  const uint64_t relative = vtable - table;  // of 32 bits with a sign
  for (unsigned index = 0; index < 4; ++index) reversed_[distance - 1 - index] = static_cast<uint8_t>(relative >> (8 * index));
  return table;
}

uint64_t FlatbufferBuilder::string(std::string_view text) {
  prepare(4, text.size() + 1);
  place(0, 1);
  for (size_t index = text.size(); index-- > 0;) reversed_.push_back(static_cast<uint8_t>(text[index]));
  place(text.size(), 4);
  return offset();
}

uint64_t FlatbufferBuilder::tables(const std::vector<uint64_t>& offsets) {
  prepare(4, 4 * offsets.size());
  for (size_t index = offsets.size(); index-- > 0;) place_reference(offsets[index]);
  place(offsets.size(), 4);
  return offset();
}

uint64_t FlatbufferBuilder::numbers(Bytes values, unsigned width) {
  prepare(4, values.size);
  prepare(width, values.size);
  for (size_t index = values.size; index-- > 0;) reversed_.push_back(values.data[index]);
  place(values.size / width, 4);
  return offset();
}

uint64_t FlatbufferBuilder::numbers64(const std::vector<uint64_t>& values) {
  prepare(4, 8 * values.size());
  prepare(8, 8 * values.size());
  for (size_t index = values.size(); index-- > 0;) prepare(8, 0), place(values[index], 8);
  place(values.size(), 4);
  return offset();
}

void FlatbufferBuilder::finish(uint64_t root, std::string_view identifier) {
  prepare(min_align_, 8);
  prepare(4, 4);
  for (size_t index = identifier.size(); index-- > 0;) reversed_.push_back(static_cast<uint8_t>(identifier[index]));
  place_reference(root);
}

std::vector<uint8_t> FlatbufferBuilder::front() const { return {reversed_.rbegin(), reversed_.rend()}; }

}  // namespace lora_core
