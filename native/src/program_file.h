// A program file as it is written: the flatbuffer with the header inside, then aligned segments.
#pragma once

#include "files.h"
#include "template.h"

namespace lora_core {

// Data that a program finds by name.
struct NamedSize {
  std::string key;
  uint64_t size;
};

std::vector<uint64_t> segment_offsets(const std::vector<uint64_t>& sizes);
uint64_t total_size(const std::vector<uint64_t>& sizes);

// Writes segments one after another, each at a multiple of the alignment.
class Segments {
 public:
  explicit Segments(Sink& sink) : sink_(sink) {}
  void write(Bytes bytes);

 private:
  Sink& sink_;
  uint64_t end_ = 0;
};

// Writes everything before the segments, whose `sizes` are given without those of `named`, which follow. Every reference
// of the tail's bytes to a segment is right already.
void write_program_head(const Tail& tail, Bytes tail_bytes, std::vector<uint64_t> sizes, const std::vector<NamedSize>& named,
                        Sink& sink);

constexpr uint64_t kSegmentAlignment = 128;
constexpr const char* kProgramMark = "lora_core.made_for_foundation";  // files/marks.py
constexpr const char* kProgramAdapters = "lora_core.adapters";

// What a program says of itself, as data that it finds by name.
struct Said {
  std::string key, text;
};

// files/marks.py: for which foundation it was made, and for which adapters, whose names are sorted. Nothing without a mark.
std::vector<Said> program_marks(const std::string& mark, const std::vector<std::string>& adapters);

}  // namespace lora_core
