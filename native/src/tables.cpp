#include "tables.h"

namespace lora_core {
namespace {

constexpr uint64_t kMostTables = 100'000;  // files/named_blobs.py

uint64_t vtable_of(Bytes data, uint64_t table) {
  const auto distance = static_cast<int32_t>(read_number(data, table, 4));
  const int64_t place = static_cast<int64_t>(table) - distance;
  if (place < 0) damaged("a table of the program has no fields");
  return static_cast<uint64_t>(place);
}

}  // namespace

uint64_t field_at(Bytes data, uint64_t table, unsigned index) {
  const uint64_t vtable = vtable_of(data, table), slot = 4 + 2 * uint64_t{index};
  if (slot >= read_number(data, vtable, 2)) return 0;
  const uint64_t relative = read_number(data, vtable + slot, 2);
  return relative == 0 ? 0 : table + relative;
}

uint64_t field_count(Bytes data, uint64_t table) {
  const uint64_t size = read_number(data, vtable_of(data, table), 2);
  return size < 4 ? 0 : (size - 4) / 2;
}

uint64_t number_of(Bytes data, uint64_t table, unsigned index, unsigned width) {
  const uint64_t at = field_at(data, table, index);
  return at == 0 ? 0 : read_number(data, at, width);
}

std::vector<uint64_t> tables_of(Bytes data, uint64_t table, unsigned index) {
  std::vector<uint64_t> found;
  const uint64_t at = field_at(data, table, index);
  if (at == 0) return found;
  const uint64_t start = referred(data, at), count = read_number(data, start, 4);
  if (count > kMostTables) damaged("a vector of the program is too long");
  data.part(start + 4, 4 * count);
  for (uint64_t place = start + 4; place < start + 4 + 4 * count; place += 4) found.push_back(referred(data, place));
  return found;
}

Bytes vector_at(Bytes data, uint64_t at, unsigned width) { return data.part(at + 4, width * read_number(data, at, 4)); }

std::string text_of(Bytes data, uint64_t table, unsigned index) {
  const uint64_t at = field_at(data, table, index);
  if (at == 0) damaged("the program has something without a name");
  const Bytes text = vector_at(data, referred(data, at), 1);
  if (text.size > 1024) damaged("a name of the program is too long");
  return std::string(text.text());
}

}  // namespace lora_core
