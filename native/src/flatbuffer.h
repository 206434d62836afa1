// Builds flatbuffers from the end to the front, with the bytes of the `flatbuffers` Python library (25.x, builder.py).
#pragma once

#include <map>
#include <string_view>
#include <vector>

#include "bytes.h"

namespace lora_core {

using VtableKey = std::vector<uint64_t>;

class FlatbufferBuilder {
 public:
  // Continues in front of `behind` bytes that end the buffer, with the vtables that stand in them.
  explicit FlatbufferBuilder(uint64_t behind = 0, uint64_t min_align = 1, std::map<VtableKey, uint64_t> vtables = {})
      : behind_(behind), min_align_(min_align), vtables_(std::move(vtables)) {}

  void start_table(unsigned fields);
  void number(unsigned field, uint64_t value, unsigned width);  // zero, the default, is left out
  void scalar(unsigned field, uint64_t value, unsigned width);  // written whatever it is
  void reference(unsigned field, uint64_t offset);
  uint64_t end_table();
  uint64_t string(std::string_view text);
  uint64_t tables(const std::vector<uint64_t>& offsets);
  uint64_t numbers(Bytes values, unsigned width);  // as they lie in a vector
  uint64_t numbers64(const std::vector<uint64_t>& values);
  void finish(uint64_t root, std::string_view identifier);
  uint64_t min_align() const { return min_align_; }
  const std::map<VtableKey, uint64_t>& vtables() const { return vtables_; }
  std::vector<uint8_t> front() const;  // what was written, without what stands behind

 private:
  uint64_t offset() const { return behind_ + reversed_.size(); }
  void prepare(uint64_t size, uint64_t more);
  void place(uint64_t value, unsigned width);
  void place_reference(uint64_t offset);

  uint64_t behind_, min_align_;
  std::map<VtableKey, uint64_t> vtables_;
  std::vector<uint8_t> reversed_;  // the last byte of the buffer first
  std::vector<uint64_t> fields_;
  uint64_t table_end_ = 0;
};

}  // namespace lora_core
