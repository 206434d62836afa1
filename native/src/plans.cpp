// Execution plans packed again. A plan that is packed at the same place, with the same vtables behind it, has the bytes
// that ExecuTorch wrote; files/schema.py and files/tables.py do the same.
#include "program.h"
#include "tables.h"

namespace lora_core {
namespace {

enum Kind : uint8_t {
  kPlan, kContainer, kValue, kNull, kInt, kBool, kDouble, kTensor, kString, kIntList, kDoubleList, kBoolList, kTensorList,
  kOptionalTensorList, kAllocation, kExtra, kChain, kInstruction, kKernelCall, kDelegateCall, kMoveCall, kJumpFalseCall,
  kFreeCall, kFrameList, kFrame, kOperator, kDelegate, kReference, kCompileSpec, kDevice
};

enum What : uint8_t { kNumber, kNumbers, kText, kTable, kTables, kUnion };

// `detail`: the width of numbers, the kind of tables, the first kind of a union whose type stands in the field before.
struct Field {
  What what;
  uint8_t detail;
};

constexpr unsigned kMostFields = 10;

struct Schema {
  uint8_t count;
  Field fields[kMostFields];
};

namespace fields {
constexpr Field n(uint8_t width) { return {kNumber, width}; }
constexpr Field ns(uint8_t width) { return {kNumbers, width}; }
constexpr Field text() { return {kText, 0}; }
constexpr Field t(Kind kind) { return {kTable, kind}; }
constexpr Field ts(Kind kind) { return {kTables, kind}; }
constexpr Field u(Kind first) { return {kUnion, first}; }

// In the order of Kind: the tables of exir/_serialize/program.fbs of ExecuTorch 1.5.1. Members of a union follow one
// another in the order of its types.
constexpr Schema kSchema[] = {
    {10, {text(), t(kContainer), ts(kValue), ns(4), ns(4), ts(kChain), ts(kOperator), ts(kDelegate), ns(8), ts(kDevice)}},
    {2, {text(), text()}},                                                                        // ContainerMetadata
    {2, {n(1), u(kNull)}},                                                                        // EValue
    {0, {}},                                                                                      // Null
    {1, {n(8)}},                                                                                  // Int
    {1, {n(1)}},                                                                                  // Bool
    {1, {n(8)}},                                                                                  // Double
    {10, {n(1), n(4), ns(4), ns(1), n(1), n(4), t(kAllocation), n(1), n(1), t(kExtra)}},          // Tensor
    {1, {text()}},                                                                                // String
    {1, {ns(8)}},                                                                                 // IntList
    {1, {ns(8)}},                                                                                 // DoubleList
    {1, {ns(1)}},                                                                                 // BoolList
    {1, {ns(4)}},                                                                                 // TensorList
    {1, {ns(4)}},                                                                                 // OptionalTensorList
    {3, {n(4), n(4), n(4)}},                                                                      // AllocationDetails
    {5, {n(8), text(), n(1), n(1), n(1)}},                                                        // ExtraTensorInfo
    {4, {ns(4), ns(4), ts(kInstruction), ts(kFrameList)}},                                        // Chain
    {2, {n(1), u(kKernelCall)}},                                                                  // Instruction
    {2, {n(4), ns(4)}},                                                                           // KernelCall
    {2, {n(4), ns(4)}},                                                                           // DelegateCall
    {2, {n(4), n(4)}},                                                                            // MoveCall
    {2, {n(4), n(4)}},                                                                            // JumpFalseCall
    {1, {n(4)}},                                                                                  // FreeCall
    {1, {ts(kFrame)}},                                                                            // FrameList
    {4, {text(), n(4), text(), text()}},                                                          // Frame
    {2, {text(), text()}},                                                                        // Operator
    {3, {text(), t(kReference), ts(kCompileSpec)}},                                               // BackendDelegate
    {2, {n(1), n(4)}},                                                                            // ...DataReference
    {2, {text(), ns(1)}},                                                                         // CompileSpec
    {3, {n(4), n(1), n(1)}},                                                                      // NonConstBufferDevice
};
}  // namespace fields

constexpr unsigned kReferenceIndex = 1;
constexpr uint8_t kLastOfValues = kOptionalTensorList, kLastOfCalls = kFreeCall;

class PlanPacker {
 public:
  PlanPacker(Bytes file, const std::string& name, const std::vector<uint64_t>& segments, FlatbufferBuilder& builder)
      : file_(file), name_(name), segments_(segments), builder_(builder), left_(product(4, file.size)) {}

  uint64_t pack(uint64_t at, uint8_t kind) {
    take(4);
    const Schema& schema = fields::kSchema[kind];
    if (field_count(file_, at) > schema.count) damaged("the program has a table with fields that are not known");
    uint64_t children[kMostFields] = {};
    for (unsigned index = 0; index < schema.count; ++index) {
      const uint64_t place = field_at(file_, at, index);
      if (place != 0) children[index] = child(at, index, schema.fields[index], place, kind);
    }
    builder_.start_table(schema.count);
    for (unsigned index = 0; index < schema.count; ++index) {
      const uint64_t place = field_at(file_, at, index);
      if (place == 0) continue;
      const Field field = schema.fields[index];
      if (field.what == kNumber) {
        const bool segment = kind == kReference && index == kReferenceIndex;
        builder_.scalar(index, segment ? next_segment() : read_number(file_, place, field.detail), field.detail);
      } else {
        builder_.reference(index, children[index]);
      }
    }
    if (kind == kReference && field_at(file_, at, kReferenceIndex) == 0) {
      damaged("a delegate's payload stands in segment 0, which holds constants");
    }
    return builder_.end_table();
  }

  void finish() const {
    if (next_ != segments_.size()) damaged("the plan has other delegates than payloads");
  }

 private:
  // Packs what the field at `place` refers to and returns its offset.
  uint64_t child(uint64_t table, unsigned index, Field field, uint64_t place, uint8_t kind) {
    switch (field.what) {
      case kNumber:
        return 0;
      case kText:
        if (kind == kPlan) return builder_.string(name_);
        return builder_.string(taken(vector_at(file_, referred(file_, place), 1)).text());
      case kNumbers:
        return builder_.numbers(taken(vector_at(file_, referred(file_, place), field.detail)), field.detail);
      case kTable:
        return pack(referred(file_, place), field.detail);
      case kUnion:
        return pack(referred(file_, place), chosen(table, index, field.detail));
      case kTables: {
        std::vector<uint64_t> packed;
        for (const uint64_t each : tables_of(file_, table, index)) packed.push_back(pack(each, field.detail));
        return builder_.tables(packed);
      }
    }
    damaged("the program has a field of no kind");
  }

  uint8_t chosen(uint64_t table, unsigned index, uint8_t first) const {
    const uint64_t type = number_of(file_, table, index - 1, 1);
    const uint8_t last = first == kNull ? kLastOfValues : kLastOfCalls;
    if (type == 0 || first + type - 1 > last) damaged("the program has a value of a type that is not known");
    return static_cast<uint8_t>(first + type - 1);
  }

  uint64_t next_segment() {
    if (next_ == segments_.size()) damaged("the plan has other delegates than payloads");
    return segments_[next_++];
  }

  // Tables that refer to one another in a net stand for more than any file could hold.
  void take(uint64_t size) {
    if (size > left_) damaged("the program's tables hold more than the file");
    left_ -= size;
  }

  Bytes taken(Bytes content) {
    take(content.size);
    return content;
  }

  const Bytes file_;
  const std::string& name_;
  const std::vector<uint64_t>& segments_;
  FlatbufferBuilder& builder_;
  uint64_t left_;
  size_t next_ = 0;
};

}  // namespace

uint64_t pack_plan(const Program& program, const Method& method, const std::string& name,
                   const std::vector<uint64_t>& segments, FlatbufferBuilder& builder) {
  PlanPacker packer(program.file, name, segments, builder);
  const uint64_t offset = packer.pack(method.plan, kPlan);
  packer.finish();
  return offset;
}

}  // namespace lora_core
