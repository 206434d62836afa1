#include "link.h"

#include <array>
#include <cmath>
#include <set>

#include "sha256.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "floats are written as they lie in memory, which must be little-endian"
#endif

namespace lora_core {
namespace {

constexpr uint64_t kSegmentAlignment = 128;
constexpr const char* kProgramMark = "lora_core.made_for_foundation";  // files/marks.py
constexpr uint64_t kDataHeader = 40, kPaddedDataHeader = 48;  // extension/flat_tensor/serialize/serialize.py

// The values of slots, one tensor in memory at a time; lora_core/adapters/slots/kinds.py folds the same way.
class Values {
 public:
  Values(const Adapter& adapter, double strength) : adapter_(adapter), strength_(strength) {}

  // The bytes of a slot's tensor, good until the next call.
  Bytes of(const SlotTensor& tensor, const Slot& slot) {
    values_.assign(tensor.rows * tensor.columns, 0.0f);
    const Update* update = effective(tensor.module);
    if (update == nullptr) {
      if (tensor.is_a) fill_idle(slot);
    } else if (tensor.is_a) {
      for (uint64_t row = 0; row < update->a.rows; ++row) update->a.row(row, values_.data() + row * update->a.columns);
    } else {
      fold_b(*update, slot.rank);
    }
    return {reinterpret_cast<const uint8_t*>(values_.data()), values_.size() * sizeof(float)};
  }

  // The key of those bytes. Slots without effect of one shape have the same, which is computed once.
  std::string key_of(const SlotTensor& tensor, const Slot& slot) {
    if (effective(tensor.module) != nullptr) return sha256(of(tensor, slot));
    std::string& key = idle_keys_[{uint64_t{tensor.is_a}, tensor.rows, tensor.columns}];
    if (key.empty()) key = sha256(of(tensor, slot));
    return key;
  }

 private:
  const Update* effective(const std::string& module) {
    const auto known = effective_.find(module);
    if (known != effective_.end()) return known->second;
    const auto found = adapter_.updates.find(module);
    const bool idle = found == adapter_.updates.end() || !found->second.a.any();
    return effective_[module] = idle ? nullptr : &found->second;
  }

  // slot_tensors.py: a zero A would be taken for a zero B by XNNPACK's weight cache (ExecuTorch 1.5.1).
  void fill_idle(const Slot& slot) {
    const auto bits = static_cast<double>(slot.rank << 16 | slot.in_features);
    values_.assign(values_.size(), static_cast<float>(std::ldexp(bits, -32)));
  }

  void fold_b(const Update& update, uint64_t rank) {
    const double scaling = update.scaling * strength_;
    const auto factor = static_cast<float>(scaling);
    bool finite = true;
    for (uint64_t row = 0; row < update.b.rows; ++row) {
      float* values = values_.data() + row * rank;
      update.b.row(row, values);
      for (uint64_t column = 0; scaling != 1.0 && column < update.b.columns; ++column) {
        values[column] *= factor;
        finite &= std::isfinite(values[column]);
      }
    }
    if (!finite) damaged("B times its scaling is more than float32 holds");
  }

  const Adapter& adapter_;
  const double strength_;
  std::vector<float> values_;
  std::map<std::string, const Update*> effective_;
  std::map<std::array<uint64_t, 3>, std::string> idle_keys_;
};

// A tensor that has to be stored: which one, and under which key.
struct StoredSlot {
  const SlotTensor* tensor;
  std::string key;
  uint64_t size;
};

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

// Writes segments one after another, each at a multiple of the alignment.
class Segments {
 public:
  explicit Segments(Sink& sink) : sink_(sink) {}
  void write(Bytes bytes) {
    sink_.zeros(aligned(end_, kSegmentAlignment) - end_);
    sink_.write(bytes);
    end_ = aligned(end_, kSegmentAlignment) + bytes.size;
  }

 private:
  Sink& sink_;
  uint64_t end_ = 0;
};

// files/program_front.py: the flatbuffer in front of the tail, in the order of ExecuTorch's ProgramT.Pack.
std::vector<uint8_t> program_front(const Tail& tail, const std::vector<uint64_t>& sizes,
                                   const std::vector<StoredSlot>& named, uint64_t first_named) {
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

// files/data_file.py: a FlatTensor file without layouts, as ExecuTorch stores an adapter's tensors.
void write_data(const Template& found, Values& values, const std::vector<StoredSlot>& stored, Sink& sink) {
  FlatbufferBuilder builder;
  std::vector<uint64_t> sizes, tables;
  for (const StoredSlot& each : stored) sizes.push_back(each.size);
  const std::vector<uint64_t> offsets = segment_offsets(sizes);
  for (size_t index = 0; index < sizes.size(); ++index) {
    builder.start_table(2);
    builder.number(1, sizes[index], 8);
    builder.number(0, offsets[index], 8);
    tables.push_back(builder.end_table());
  }
  const uint64_t segments = builder.tables(tables);
  tables.clear();
  for (size_t index = 0; index < stored.size(); ++index) {
    const uint64_t name = builder.string(stored[index].key);
    builder.start_table(3);
    builder.number(1, index, 4);
    builder.reference(0, name);
    tables.push_back(builder.end_table());
  }
  const uint64_t named = builder.tables(tables);
  builder.start_table(3);
  builder.reference(2, named);
  builder.reference(1, segments);
  builder.finish(builder.end_table(), "FT01");
  const std::vector<uint8_t> flatbuffer = builder.front();

  const uint64_t base = aligned(flatbuffer.size() + kPaddedDataHeader, kSegmentAlignment);
  uint8_t head[8 + kPaddedDataHeader] = {};
  put_number(head, number_at(flatbuffer.data(), 4) + kPaddedDataHeader, 4);
  std::memcpy(head + 4, flatbuffer.data() + 4, 4);
  std::memcpy(head + 8, "FH01", 4);
  put_number(head + 12, kDataHeader, 4);
  put_number(head + 16, kPaddedDataHeader, 8);
  put_number(head + 24, flatbuffer.size(), 8);
  put_number(head + 32, base, 8);
  put_number(head + 40, total_size(sizes), 8);
  sink.write({head, sizeof head});
  sink.write({flatbuffer.data() + 8, flatbuffer.size() - 8});
  sink.zeros(base - kPaddedDataHeader - flatbuffer.size());
  Segments written(sink);
  for (const StoredSlot& each : stored) written.write(values.of(*each.tensor, found.slots.at(each.tensor->module)));
}

// lora_core/pte.py: the front and the tail with the header inside, and zero bytes up to the segments.
void write_program_head(const Template& found, Bytes front, Bytes tail, const std::vector<uint64_t>& sizes, Sink& sink) {
  const uint64_t header = found.tail.header_length;
  const uint64_t size = header + front.size + tail.size;
  const uint64_t base = aligned(size, kSegmentAlignment);
  uint8_t head[40] = {};
  put_number(head, number_at(front.data, 4) + header, 4);
  std::memcpy(head + 4, front.data + 4, 4);
  std::memcpy(head + 8, "eh00", 4);
  put_number(head + 12, 32, 4);
  put_number(head + 16, size, 8);
  put_number(head + 24, base, 8);
  put_number(head + 32, total_size(sizes), 8);
  sink.write({head, sizeof head});
  sink.zeros(header - 32);
  sink.write(front.part(8, front.size - 8));
  sink.write(tail);
  sink.zeros(base - size);
}

// The program's segments with the adapter's keys: those of constants first, then payloads, equal ones once.
struct Payloads {
  std::vector<std::vector<uint8_t>> changed;  // by the template's segment; empty for those of constants
  std::vector<Bytes> segments;
  std::vector<uint8_t> tail;
};

Payloads rewrite(const Template& found, const std::vector<std::string>& keys) {
  Payloads made;
  made.changed.resize(found.segments.size());
  std::vector<bool> delegated(found.segments.size());
  for (const Delegate& each : found.delegates) {
    const Bytes payload = found.segments[each.segment];
    if (!delegated[each.segment]) made.changed[each.segment].assign(payload.data, payload.data + payload.size);
    delegated[each.segment] = true;
  }
  for (size_t index = 0; index < keys.size(); ++index) {
    for (const Site& site : found.tensors[index].sites) {
      std::memcpy(made.changed[site.payload].data() + site.offset, keys[index].data(), keys[index].size());
    }
  }
  for (size_t index = 0; index < found.segments.size(); ++index) {
    if (!delegated[index]) made.segments.push_back(found.segments[index]);
  }
  const Bytes tail = found.program.part(found.tail.offset, found.tail.size);
  made.tail.assign(tail.data, tail.data + tail.size);
  std::map<std::string_view, uint64_t> placed;
  for (const Delegate& each : found.delegates) {
    const std::vector<uint8_t>& payload = made.changed[each.segment];
    const Bytes bytes = {payload.data(), payload.size()};
    const auto [place, is_new] = placed.emplace(bytes.text(), made.segments.size());
    if (is_new) made.segments.push_back(bytes);
    put_number(made.tail.data() + each.position, place->second, 4);
  }
  return made;
}

}  // namespace

void check_fit(const Template& found, const Adapter& adapter) {
  if (!adapter.foundation.empty() && adapter.foundation != found.foundation) {
    fail(LORA_CORE_FOREIGN, "the adapter was packed for foundation " + adapter.foundation.substr(0, 64) +
                                ", the template's is " + found.foundation);
  }
  if (!adapter.template_digest.empty() && adapter.template_digest != found.digest) {
    fail(LORA_CORE_FOREIGN, "the adapter was packed for a template with digest " + adapter.template_digest.substr(0, 64) +
                                ", this one's is " + found.digest);
  }
  for (const auto& [module, update] : adapter.updates) {
    const auto slot = found.slots.find(module);
    const std::string name = module.substr(0, 200);
    if (slot == found.slots.end()) fail(LORA_CORE_MISFIT, "the template has no slot for " + name);
    if (update.a.columns != slot->second.in_features || update.b.rows != slot->second.out_features) {
      fail(LORA_CORE_MISFIT, "the adapter is for layers of another size at " + name);
    }
    if (update.a.rows > slot->second.rank) {
      fail(LORA_CORE_MISFIT, "the adapter has rank " + std::to_string(update.a.rows) + " at " + name +
                                 ", where the template has room for " + std::to_string(slot->second.rank));
    }
  }
}

void link(const Template& found, const Adapter& adapter, double strength, Sink& program, Sink* data) {
  if (!std::isfinite(strength)) fail(LORA_CORE_UNSUPPORTED, "the strength is no finite number");
  Values values(adapter, strength);
  std::vector<std::string> keys;
  std::vector<StoredSlot> stored;
  std::set<std::string> seen;
  for (const SlotTensor& tensor : found.tensors) {
    keys.push_back(values.key_of(tensor, found.slots.at(tensor.module)));
    if (!found.is_in_foundation(keys.back()) && seen.insert(keys.back()).second) {
      stored.push_back({&tensor, keys.back(), tensor.rows * tensor.columns * sizeof(float)});
    }
  }
  if (data != nullptr) write_data(found, values, stored, *data);
  const Payloads made = rewrite(found, keys);
  std::vector<uint64_t> sizes;
  for (const Bytes& segment : made.segments) sizes.push_back(segment.size);
  std::vector<StoredSlot> named = data == nullptr ? stored : std::vector<StoredSlot>{};
  if (!found.mark.empty()) named.push_back({nullptr, kProgramMark, found.mark.size()});
  for (const StoredSlot& each : named) sizes.push_back(each.size);
  const std::vector<uint8_t> front = program_front(found.tail, sizes, named, made.segments.size());
  write_program_head(found, {front.data(), front.size()}, {made.tail.data(), made.tail.size()}, sizes, program);
  Segments written(program);
  for (const Bytes& segment : made.segments) written.write(segment);
  for (const StoredSlot& each : named) {
    written.write(each.tensor == nullptr ? bytes_of(found.mark)
                                         : values.of(*each.tensor, found.slots.at(each.tensor->module)));
  }
}

}  // namespace lora_core
