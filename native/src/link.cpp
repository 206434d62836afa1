#include "link.h"

#include <set>

#include "names.h"
#include "program_file.h"
#include "values.h"

namespace lora_core {
namespace {

constexpr uint64_t kDataHeader = 40, kPaddedDataHeader = 48;  // extension/flat_tensor/serialize/serialize.py

// A tensor that has to be stored: which one, and under which key.
struct StoredSlot {
  const SlotTensor* tensor;
  std::string key;
  uint64_t size;
};

// files/data_file.py: a FlatTensor file without layouts, as ExecuTorch stores an adapter's tensors.
void write_data(const Plan& plan, Values& values, const std::vector<StoredSlot>& stored, Sink& sink) {
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
  for (const StoredSlot& each : stored) written.write(values.of(*each.tensor, plan.slots.at(each.tensor->module)));
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
    for (const Site& site : found.plans[0].tensors[index].sites) {
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

void check_adapter(const Template& found, const Adapter& adapter) {
  if (!adapter.foundation.empty() && adapter.foundation != found.foundation) {
    fail(LORA_CORE_FOREIGN, "the adapter was packed for foundation " + adapter.foundation.substr(0, 64) +
                                ", the template's is " + found.foundation);
  }
  if (!adapter.template_digest.empty() && adapter.template_digest != found.digest) {
    fail(LORA_CORE_FOREIGN, "the adapter was packed for a template with digest " + adapter.template_digest.substr(0, 64) +
                                ", this one's is " + found.digest);
  }
}

void check_plan(const Plan& plan, const Adapter& adapter) {
  for (const auto& [module, update] : adapter.updates) {
    const auto slot = plan.slots.find(module);
    const std::string name = module.substr(0, 200);
    if (slot == plan.slots.end()) fail(LORA_CORE_MISFIT, "the template has no slot for " + name);
    if (update.a.columns != slot->second.in_features || update.b.rows != slot->second.out_features) {
      fail(LORA_CORE_MISFIT, "the adapter is for layers of another size at " + name);
    }
    if (update.a.rows > slot->second.rank) {
      fail(LORA_CORE_MISFIT, "the adapter has rank " + std::to_string(update.a.rows) + " at " + name +
                                 ", where the template has room for " + std::to_string(slot->second.rank));
    }
  }
}

void link(const Template& found, const std::string& name, const Adapter& adapter, double strength, Sink& program,
          Sink* data) {
  if (found.in_one_program) {
    fail(LORA_CORE_UNSUPPORTED,
         "the template is of a bundle with one program for all adapters: adapters are added to that (lora_core_add_...)");
  }
  check_adapter(found, adapter);
  check_name(name);
  const Plan& plan = found.plans[0];
  check_plan(plan, adapter);
  Values values(adapter, strength);
  std::vector<std::string> keys;
  std::vector<StoredSlot> stored;
  std::set<std::string> seen;
  for (const SlotTensor& tensor : plan.tensors) {
    keys.push_back(values.key_of(tensor, plan.slots.at(tensor.module)));
    if (!found.is_in_foundation(keys.back()) && seen.insert(keys.back()).second) {
      stored.push_back({&tensor, keys.back(), tensor.size()});
    }
  }
  if (data != nullptr) write_data(plan, values, stored, *data), stored.clear();
  const Payloads made = rewrite(found, keys);
  std::vector<uint64_t> sizes;
  for (const Bytes& segment : made.segments) sizes.push_back(segment.size);
  std::vector<NamedSize> named;
  for (const StoredSlot& each : stored) named.push_back({each.key, each.size});
  const std::vector<Said> marks = program_marks(found.mark, {name});
  for (const Said& each : marks) named.push_back({each.key, each.text.size()});
  write_program_head(found.tail, {made.tail.data(), made.tail.size()}, sizes, named, program);
  Segments written(program);
  for (const Bytes& segment : made.segments) written.write(segment);
  for (const StoredSlot& each : stored) written.write(values.of(*each.tensor, plan.slots.at(each.tensor->module)));
  for (const Said& each : marks) written.write(bytes_of(each.text));
}

}  // namespace lora_core
