#include "program_file.h"

namespace lora_core {

std::vector<uint64_t> segment_offsets(const std::vector<uint64_t>& sizes) {
  std::vector<uint64_t> offsets;
  uint64_t end = 0;
  for (const uint64_t size : sizes) {
    offsets.push_back(aligned(end, kSegmentAlignment));
    end = offsets.back() + size;
  }
  return offsets;
}

uint64_t total_size(const std::vector<uint64_t>& sizes) {
  return sizes.empty() ? 0 : segment_offsets(sizes).back() + sizes.back();
}

void Segments::write(Bytes bytes) {
  sink_.zeros(aligned(end_, kSegmentAlignment) - end_);
  sink_.write(bytes);
  end_ = aligned(end_, kSegmentAlignment) + bytes.size;
}

std::vector<Said> program_marks(const std::string& mark, const std::vector<std::string>& adapters) {
  std::vector<Said> said;
  if (mark.empty()) return said;
  said.push_back({kProgramMark, mark});
  if (adapters.empty()) return said;
  std::string names;
  for (const std::string& each : adapters) names += (names.empty() ? "" : "\n") + each;
  said.push_back({kProgramAdapters, names});
  return said;
}

namespace {

// files/program_front.py: the flatbuffer in front of the tail, in the order of ExecuTorch's ProgramT.Pack.
std::vector<uint8_t> program_front(const Tail& tail, const std::vector<uint64_t>& sizes,
                                   const std::vector<NamedSize>& named, uint64_t first_named) {
  FlatbufferBuilder builder(tail.size, tail.min_align, tail.vtables);
  const std::vector<uint64_t> offsets = segment_offsets(sizes);
  const auto pack_offsets = [&](const SegmentOffsets& table) {
    const uint64_t vector = builder.numbers64(table.offsets);
    builder.start_table(2);
    builder.number(0, table.segment, 4);
    builder.reference(1, vector);
    return builder.end_table();
  };
  std::vector<uint64_t> tables;
  for (size_t index = 0; index < sizes.size(); ++index) {
    builder.start_table(2);
    builder.number(0, offsets[index], 8);
    builder.number(1, sizes[index], 8);
    tables.push_back(builder.end_table());
  }
  const uint64_t segments = builder.tables(tables);
  const uint64_t constant = tail.constant_segment ? pack_offsets(*tail.constant_segment) : 0;
  uint64_t changeable = 0, names = 0;
  if (tail.mutable_segments) {
    tables.clear();
    for (const SegmentOffsets& table : *tail.mutable_segments) tables.push_back(pack_offsets(table));
    changeable = builder.tables(tables);
  }
  if (!named.empty()) {
    tables.clear();
    for (size_t index = 0; index < named.size(); ++index) {
      const uint64_t name = builder.string(named[index].key);
      builder.start_table(2);
      builder.reference(0, name);
      builder.number(1, first_named + index, 4);
      tables.push_back(builder.end_table());
    }
    names = builder.tables(tables);
  }
  builder.start_table(8);
  builder.number(0, tail.version, 4);
  for (unsigned index = 0; index < 3; ++index) builder.reference(index + 1, tail.vectors[index]);
  builder.reference(4, segments);
  builder.reference(5, constant);
  builder.reference(6, changeable);
  builder.reference(7, names);
  builder.finish(builder.end_table(), tail.file_identifier);
  return builder.front();
}

}  // namespace

// lora_core/pte.py: the front and the tail with the header inside, and zero bytes up to the segments.
void write_program_head(const Tail& tail, Bytes tail_bytes, std::vector<uint64_t> sizes, const std::vector<NamedSize>& named,
                        Sink& sink) {
  const uint64_t first_named = sizes.size();
  for (const NamedSize& each : named) sizes.push_back(each.size);
  const std::vector<uint8_t> front = program_front(tail, sizes, named, first_named);
  const uint64_t header = tail.header_length;
  const uint64_t size = header + front.size() + tail_bytes.size;
  const uint64_t base = aligned(size, kSegmentAlignment);
  uint8_t head[40] = {};
  put_number(head, number_at(front.data(), 4) + header, 4);
  std::memcpy(head + 4, front.data() + 4, 4);
  std::memcpy(head + 8, "eh00", 4);
  put_number(head + 12, 32, 4);
  put_number(head + 16, size, 8);
  put_number(head + 24, base, 8);
  put_number(head + 32, total_size(sizes), 8);
  sink.write({head, sizeof head});
  sink.zeros(header - 32);
  sink.write({front.data() + 8, front.size() - 8});
  sink.write(tail_bytes);
  sink.zeros(base - size);
}

}  // namespace lora_core
