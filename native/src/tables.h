// Reads flatbuffer tables. Throws instead of reaching beyond the end.
#pragma once

#include <string>
#include <vector>

#include "bytes.h"

namespace lora_core {

inline uint64_t read_number(Bytes data, uint64_t at, unsigned width) { return number_at(data.part(at, width).data, width); }

// The position of a table's field, 0 if the table does not have it.
uint64_t field_at(Bytes data, uint64_t table, unsigned index);
// How many fields the table has room for.
uint64_t field_count(Bytes data, uint64_t table);
// The position of what the reference at `at` refers to.
inline uint64_t referred(Bytes data, uint64_t at) { return at + read_number(data, at, 4); }
// An unsigned number, 0 if it is left at its default.
uint64_t number_of(Bytes data, uint64_t table, unsigned index, unsigned width);
// The positions of the tables of a vector; none if the field is left out.
std::vector<uint64_t> tables_of(Bytes data, uint64_t table, unsigned index);
// The numbers of a vector `width` bytes wide, or the characters of a string (`width` 1), at `at`.
Bytes vector_at(Bytes data, uint64_t at, unsigned width);
std::string text_of(Bytes data, uint64_t table, unsigned index);

}  // namespace lora_core
