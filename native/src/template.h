// A template: a program with placeholders, and the relocation table that says where they stand (schema 2).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bytes.h"
#include "adapter.h"
#include "flatbuffer.h"
#include "program.h"

namespace lora_core {

constexpr uint64_t kKeyLength = 64;

struct Site {
  uint64_t payload, offset;
};

// One part of a slot: float32, row after row.
struct SlotTensor {
  std::string module;
  bool is_a = false;
  uint64_t rows = 0, columns = 0;
  std::vector<Site> sites;

  uint64_t size() const { return rows * columns * sizeof(float); }
};

// What of the program's flatbuffer stays, and the state of the builder that wrote it.
struct Tail {
  uint64_t offset = 0, size = 0;
  uint64_t min_align = 0, version = 0, header_length = 0;
  std::vector<uint64_t> vectors;
  std::map<VtableKey, uint64_t> vtables;
  std::string file_identifier;
  std::optional<SegmentOffsets> constant_segment;
  std::optional<std::vector<SegmentOffsets>> mutable_segments;
};

struct Delegate {
  uint64_t position, segment;
};

struct Slot {
  uint64_t rank = 0, in_features = 0, out_features = 0;
};

// The slots of a template method.
struct Plan {
  std::string method;               // in one program
  std::vector<SlotTensor> tensors;  // in stored order
  std::map<std::string, Slot> slots;
  uint64_t size = 0;  // bytes that each adapter occupies

  bool holds(const Adapter& adapter) const;
};

struct Template {
  Bytes program;
  bool in_one_program = false;
  std::vector<Plan> plans;  // one, but in one program
  // Of a program for each adapter: sites count its segments.
  Tail tail;
  std::vector<Bytes> segments;
  std::vector<Delegate> delegates;
  // Of one program for all: sites count the payloads of the plan's method.
  Program parsed;
  std::vector<std::string> foundation_keys;  // sorted
  std::string foundation, digest;
  std::string mark;  // what programs carry of the foundation (files/marks.py); empty in older tables

  bool is_in_foundation(const std::string& key) const;
};

// Throws unless the table is one for this program. `program` must stay where it is.
Template read_template(Bytes program, Bytes table);

}  // namespace lora_core
