// A program file taken apart, as far as its methods are put together anew (exir/_serialize/program.fbs).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bytes.h"
#include "flatbuffer.h"

namespace lora_core {

struct SegmentOffsets {
  uint64_t segment = 0;
  std::vector<uint64_t> offsets;
};

struct Method {
  std::string name;
  uint64_t plan = 0;               // where its table stands
  std::vector<uint64_t> payloads;  // the segment of each delegate, in the plan's order
  bool computes = false;           // false for metadata (get_max_seq_len)
};

struct Program {
  Bytes file;
  std::vector<Bytes> segments;
  std::map<std::string, uint64_t> named;  // the segment of named data
  std::vector<Method> methods;
  uint64_t version = 0;
  std::string file_identifier;
  std::optional<SegmentOffsets> constant_segment;
  std::optional<std::vector<SegmentOffsets>> mutable_segments;

  const Method* method(const std::string& name) const;
  Bytes payload(const Method& method, size_t index) const { return segments[method.payloads[index]]; }
};

// Throws unless it is a whole program. `file` must stay where it is.
Program read_program(Bytes file);

// Packs the plan of `method` as `name`, its delegates' payloads in `segments`; returns its offset. The bytes are those of
// files/tables.py: a table's children in the order of its fields, then its fields in the same order.
uint64_t pack_plan(const Program& program, const Method& method, const std::string& name,
                   const std::vector<uint64_t>& segments, FlatbufferBuilder& builder);

}  // namespace lora_core
