#include "program.h"

#include "tables.h"

namespace lora_core {
namespace {

// Fields of Program, of ExecutionPlan, and of what is below (exir/_serialize/program.fbs of ExecuTorch 1.5.1).
constexpr unsigned kPlans = 1, kSegments = 4, kConstants = 5, kMutable = 6, kNamed = 7;
constexpr unsigned kName = 0, kChains = 5, kDelegates = 7, kInstructions = 2, kProcessed = 1, kIndex = 1;

SegmentOffsets read_offsets(Bytes file, uint64_t table) {
  SegmentOffsets found;
  found.segment = number_of(file, table, 0, 4);
  if (const uint64_t at = field_at(file, table, 1); at != 0) {
    const Bytes numbers = vector_at(file, referred(file, at), 8);
    for (uint64_t place = 0; place < numbers.size; place += 8) found.offsets.push_back(number_at(numbers.data + place, 8));
  }
  return found;
}

Method read_method(const Program& program, uint64_t plan) {
  Method method;
  method.plan = plan;
  method.name = text_of(program.file, plan, kName);
  for (const uint64_t delegate : tables_of(program.file, plan, kDelegates)) {
    const uint64_t at = field_at(program.file, delegate, kProcessed);
    if (at == 0) continue;
    method.payloads.push_back(number_of(program.file, referred(program.file, at), kIndex, 4));
    if (method.payloads.back() >= program.segments.size()) damaged("a delegate's payload stands in no segment");
  }
  method.computes = !method.payloads.empty();
  for (const uint64_t chain : tables_of(program.file, plan, kChains)) {
    method.computes |= !tables_of(program.file, chain, kInstructions).empty();
  }
  return method;
}

// The header inside (lora_core/pte.py): where segments begin.
uint64_t segment_base(Bytes file) {
  if (file.size < 40 || file.part(4, 2).text() != "ET" || file.part(8, 4).text() != "eh00") {
    damaged("the file is no ExecuTorch program");
  }
  const uint64_t base = read_number(file, 24, 8), size = read_number(file, 32, 8);
  file.part(base, size);
  return base;
}

}  // namespace

const Method* Program::method(const std::string& name) const {
  for (const Method& each : methods) {
    if (each.name == name) return &each;
  }
  return nullptr;
}

Program read_program(Bytes file) {
  Program found;
  found.file = file;
  const uint64_t base = segment_base(file), root = read_number(file, 0, 4);
  for (const uint64_t table : tables_of(file, root, kSegments)) {
    const uint64_t offset = number_of(file, table, 0, 8);
    if (offset > file.size) damaged("a segment ends behind the end of the program");
    found.segments.push_back(file.part(base + offset, number_of(file, table, 1, 8)));
  }
  for (const uint64_t table : tables_of(file, root, kNamed)) {
    const uint64_t segment = number_of(file, table, 1, 4);
    if (segment >= found.segments.size()) damaged("named data of the program stands in no segment");
    found.named[text_of(file, table, 0)] = segment;
  }
  found.version = number_of(file, root, 0, 4);
  found.file_identifier = std::string(file.part(4, 4).text());
  if (const uint64_t at = field_at(file, root, kConstants); at != 0) found.constant_segment = read_offsets(file, referred(file, at));
  if (field_at(file, root, kMutable) != 0) {
    found.mutable_segments.emplace();
    for (const uint64_t table : tables_of(file, root, kMutable)) found.mutable_segments->push_back(read_offsets(file, table));
  }
  for (const uint64_t plan : tables_of(file, root, kPlans)) found.methods.push_back(read_method(found, plan));
  return found;
}

}  // namespace lora_core
