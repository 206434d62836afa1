// One program for all adapters (multimethod/residents.py): adapters read back from it, and put together with others.
#include <memory>
#include <set>

#include "link.h"
#include "names.h"
#include "program_file.h"
#include "sha256.h"
#include "values.h"

namespace lora_core {
namespace {

// An adapter in a program: the plan it uses, and the key of each of that plan's tensors.
struct Resident {
  size_t plan = 0;
  std::vector<std::string> keys;
  Values* values = nullptr;  // of one that is new; the others' tensors are in the current program
};

using Residents = std::map<std::string, Resident>;

const Method& method_of(const Template& found, const std::string& name) {
  const Method* method = found.parsed.method(name);
  if (method == nullptr) damaged("the template has no method '" + name.substr(0, 64) + "'");
  return *method;
}

// Writes a payload of a plan's template method with other keys into `payload`.
void fill(const Template& found, const Resident& resident, size_t index, std::vector<uint8_t>& payload) {
  const Plan& plan = found.plans[resident.plan];
  const Bytes bare = found.parsed.payload(method_of(found, plan.method), index);
  payload.assign(bare.data, bare.data + bare.size);
  for (size_t each = 0; each < plan.tensors.size(); ++each) {
    for (const Site& site : plan.tensors[each].sites) {
      if (site.payload == index) std::memcpy(payload.data() + site.offset, resident.keys[each].data(), kKeyLength);
    }
  }
}

// Says whether `method` of `current` is the plan's, and reads its keys.
bool read_resident(const Template& found, const Program& current, const Method& method, size_t index, Resident& resident) {
  const Plan& plan = found.plans[index];
  const Method& bare = method_of(found, plan.method);
  if (method.payloads.size() != bare.payloads.size()) return false;
  for (size_t each = 0; each < method.payloads.size(); ++each) {
    if (current.payload(method, each).size != found.parsed.payload(bare, each).size) return false;
  }
  resident.plan = index;
  resident.keys.clear();
  for (const SlotTensor& tensor : plan.tensors) {
    const Site& site = tensor.sites.front();
    resident.keys.emplace_back(current.payload(method, site.payload).part(site.offset, kKeyLength).text());
  }
  std::vector<uint8_t> payload;
  for (size_t each = 0; each < method.payloads.size(); ++each) {
    fill(found, resident, each, payload);
    if (current.payload(method, each).text() != Bytes{payload.data(), payload.size()}.text()) return false;
  }
  return true;
}

Residents read_residents(const Template& found, const Program& current) {
  const auto mark = current.named.find(kProgramMark);
  const bool marked = mark != current.named.end();
  if (!found.mark.empty() && marked && current.segments[mark->second].text() != found.mark) {
    fail(LORA_CORE_FOREIGN, "the program was made for another foundation than the template");
  }
  Residents residents;
  for (const Method& method : current.methods) {
    if (!method.computes || method.name == kBase) continue;
    Resident resident;
    bool known = false;
    for (size_t plan = 0; plan < found.plans.size() && !known; ++plan) {
      known = read_resident(found, current, method, plan, resident);
    }
    if (!known) damaged("method '" + method.name.substr(0, 64) + "' of the program was not linked from this template");
    residents[method.name] = resident;
  }
  return residents;
}

void check_free(const Program& current, const std::string& name) {
  check_name(name);
  for (const Method& method : current.methods) {
    if (lower(method.name) == lower(name)) fail(LORA_CORE_MISFIT, "the program has a method '" + method.name + "' already");
  }
}

// choice.py: of the plans that hold the adapter the one that costs least, the first of equals.
size_t plan_for(const Template& found, const Adapter& adapter) {
  size_t chosen = found.plans.size(), largest = 0;
  for (size_t index = 0; index < found.plans.size(); ++index) {
    const Plan& plan = found.plans[index];
    if (plan.size > found.plans[largest].size) largest = index;
    if (plan.holds(adapter) && (chosen == found.plans.size() || plan.size < found.plans[chosen].size)) chosen = index;
  }
  if (chosen == found.plans.size()) check_plan(found.plans[largest], adapter);
  return chosen;
}

// A tensor that has to be stored: of the current program, or of a new adapter.
struct Stored {
  const Resident* resident;
  size_t tensor;
  Bytes data;  // null: computed
};

class OneProgram {
 public:
  OneProgram(const Template& found, const Program& current, const Residents& residents)
      : found_(found), current_(current), residents_(residents) {}

  void write(Sink& sink) {
    collect();
    pack();
    std::vector<NamedSize> named = named_;
    std::vector<std::string> names;
    for (const auto& [name, resident] : residents_) names.push_back(name);
    const std::vector<Said> marks = program_marks(found_.mark, names);
    for (const Said& each : marks) named.push_back({each.key, each.text.size()});
    write_program_head(tail_, {plans_.data(), plans_.size()}, sizes_, named, sink);
    Segments written(sink);
    for (const Bytes& each : constants_) written.write(each);
    std::vector<uint8_t> payload;
    for (const auto& [resident, index] : payloads_) written.write(payload_of(resident, index, payload));
    for (const Stored& each : stored_) {
      if (each.data.data != nullptr) {
        written.write(each.data);
        continue;
      }
      const Plan& plan = found_.plans[each.resident->plan];
      const SlotTensor& tensor = plan.tensors[each.tensor];
      written.write(each.resident->values->of(tensor, plan.slots.at(tensor.module)));
    }
    for (const Said& each : marks) written.write(bytes_of(each.text));
  }

 private:
  // Finds what is stored beside the foundation, each once.
  void collect() {
    std::set<std::string> seen, checked;
    for (const auto& [name, resident] : residents_) {
      const Plan& plan = found_.plans[resident.plan];
      for (size_t index = 0; index < plan.tensors.size(); ++index) {
        const std::string& key = resident.keys[index];
        if (found_.is_in_foundation(key)) continue;
        const bool is_new = seen.insert(key).second;
        Stored each = {&resident, index, {}};
        if (resident.values == nullptr) {
          each.data = data_of(name, key);
          if (checked.insert(key).second && sha256(each.data) != key) lost(name);
        }
        if (!is_new) continue;
        stored_.push_back(each);
        named_.push_back({key, plan.tensors[index].size()});
        if (each.data.data != nullptr && each.data.size != named_.back().size) lost(name);
      }
    }
  }

  Bytes data_of(const std::string& name, const std::string& key) const {
    const auto place = current_.named.find(key);
    if (place == current_.named.end()) lost(name);
    return current_.segments[place->second];
  }

  [[noreturn]] static void lost(const std::string& name) {
    damaged("the program does not hold adapter '" + name.substr(0, 64) + "' as it was linked");
  }

  // Packs all methods: those of the base and of adapters by their names, metadata behind them.
  void pack() {
    place_constants();
    FlatbufferBuilder builder;
    std::map<std::string, const Resident*> methods = {{kBase, nullptr}};
    for (const auto& [name, resident] : residents_) methods[name] = &resident;
    std::vector<uint64_t> offsets;
    for (const auto& [name, resident] : methods) {
      const Method& method = source_of(resident);
      offsets.push_back(pack_plan(found_.parsed, method, name, place_payloads(method, resident), builder));
    }
    for (const Method& each : found_.parsed.methods) {
      if (!each.computes) offsets.push_back(pack_plan(found_.parsed, each, each.name, {}, builder));
    }
    const uint64_t plans = builder.tables(offsets);
    const uint64_t constants = builder.tables({}), delegates = builder.tables({});
    plans_ = builder.front();
    tail_.size = plans_.size();
    tail_.min_align = builder.min_align();
    tail_.version = found_.parsed.version;
    tail_.header_length = 32;  // lora_core/pte.py
    tail_.vectors = {plans, constants, delegates};
    tail_.vtables = builder.vtables();
    tail_.file_identifier = found_.parsed.file_identifier;
    tail_.constant_segment = found_.parsed.constant_segment;
    tail_.mutable_segments = found_.parsed.mutable_segments;
  }

  const Method& source_of(const Resident* resident) const {
    return method_of(found_, resident == nullptr ? kBase : found_.plans[resident->plan].method);
  }

  void place_constants() {
    std::set<uint64_t> segments;
    if (found_.parsed.constant_segment) segments.insert(found_.parsed.constant_segment->segment);
    if (found_.parsed.mutable_segments) {
      for (const SegmentOffsets& each : *found_.parsed.mutable_segments) segments.insert(each.segment);
    }
    for (const uint64_t each : segments) {
      if (each >= found_.parsed.segments.size()) damaged("constants of the template stand in no segment");
      constants_.push_back(found_.parsed.segments[each]);
      sizes_.push_back(constants_.back().size);
    }
  }

  // Returns the segments of a method's payloads; equal ones are stored once.
  std::vector<uint64_t> place_payloads(const Method& method, const Resident* resident) {
    std::vector<uint64_t> places;
    std::vector<uint8_t> payload;
    for (size_t index = 0; index < method.payloads.size(); ++index) {
      const Bytes content = payload_of(resident, index, payload);
      const auto [place, is_new] = placed_.emplace(sha256(content), sizes_.size());
      if (is_new) {
        payloads_.emplace_back(resident, index);
        sizes_.push_back(content.size);
      }
      places.push_back(place->second);
    }
    return places;
  }

  Bytes payload_of(const Resident* resident, size_t index, std::vector<uint8_t>& payload) const {
    if (resident == nullptr) return found_.parsed.payload(source_of(nullptr), index);
    fill(found_, *resident, index, payload);
    return {payload.data(), payload.size()};
  }

  const Template& found_;
  const Program& current_;
  const Residents& residents_;
  std::vector<Bytes> constants_;
  std::vector<std::pair<const Resident*, size_t>> payloads_;
  std::map<std::string, uint64_t> placed_;
  std::vector<Stored> stored_;
  std::vector<NamedSize> named_;
  std::vector<uint64_t> sizes_;  // of constants and payloads
  std::vector<uint8_t> plans_;
  Tail tail_;
};

void require_one_program(const Template& found) {
  if (!found.in_one_program) {
    fail(LORA_CORE_UNSUPPORTED, "the template is of a bundle with a program for each adapter: link it (lora_core_link_...)");
  }
}

}  // namespace

void link_into(const Template& found, const Program& current, const std::string& name, const Adapter& adapter,
               double strength, Sink& program) {
  require_one_program(found);
  check_adapter(found, adapter);
  check_free(current, name);
  Residents residents = read_residents(found, current);
  Values values(adapter, strength);
  Resident added;
  added.plan = plan_for(found, adapter);
  added.values = &values;
  const Plan& plan = found.plans[added.plan];
  for (const SlotTensor& tensor : plan.tensors) added.keys.push_back(values.key_of(tensor, plan.slots.at(tensor.module)));
  residents[name] = added;
  OneProgram(found, current, residents).write(program);
}

void unlink_from(const Template& found, const Program& current, const std::string& name, Sink& program) {
  require_one_program(found);
  Residents residents = read_residents(found, current);
  if (residents.erase(name) == 0) fail(LORA_CORE_MISFIT, "the program has no adapter '" + name.substr(0, 64) + "'");
  OneProgram(found, current, residents).write(program);
}

}  // namespace lora_core
