#include "template.h"

#include <algorithm>

#include "json.h"
#include "sha256.h"

namespace lora_core {
namespace {

constexpr uint64_t kSchema = 2;
constexpr uint64_t kLargestTensor = uint64_t{1} << 32;

SegmentOffsets read_offsets(Json& json) {
  SegmentOffsets found;
  json.object([&](const std::string& key) {
    if (key == "segment") {
      found.segment = json.number();
    } else if (key == "offsets") {
      json.array([&] { found.offsets.push_back(json.number()); });
    } else {
      json.skip();
    }
  });
  return found;
}

// [[numbers of the key], offset]
void read_vtable(Json& json, Tail& tail) {
  VtableKey key;
  uint64_t offset = 0;
  int index = 0;
  json.array([&] {
    if (index++ == 0) {
      json.array([&] { key.push_back(json.number()); });
    } else {
      offset = json.number();
    }
  });
  tail.vtables.emplace(std::move(key), offset);
}

void read_tail(Json& json, Tail& tail) {
  json.object([&](const std::string& key) {
    if (key == "min_align") {
      tail.min_align = json.number();
    } else if (key == "version") {
      tail.version = json.number();
    } else if (key == "header_length") {
      tail.header_length = json.number();
    } else if (key == "file_identifier") {
      tail.file_identifier = json.string();
    } else if (key == "vectors") {
      json.array([&] { tail.vectors.push_back(json.number()); });
    } else if (key == "vtables") {
      json.array([&] { read_vtable(json, tail); });
    } else if (key == "constant_segment") {
      if (!json.null()) tail.constant_segment = read_offsets(json);
    } else if (key == "mutable_segments") {
      if (!json.null()) {
        tail.mutable_segments.emplace();
        json.array([&] { tail.mutable_segments->push_back(read_offsets(json)); });
      }
    } else {
      json.skip();
    }
  });
}

struct Pair {
  uint64_t first = 0, second = 0;
};

Pair read_pair(Json& json, const char* first, const char* second) {
  Pair pair;
  int found = 0;
  json.object([&](const std::string& key) {
    if (key == first) {
      pair.first = json.number(), ++found;
    } else if (key == second) {
      pair.second = json.number(), ++found;
    } else {
      json.skip();
    }
  });
  if (found != 2) damaged(std::string("the relocation table has an entry without ") + first + " and " + second);
  return pair;
}

SlotTensor read_tensor(Json& json) {
  SlotTensor tensor;
  std::string part;
  std::vector<uint64_t> shape;
  json.object([&](const std::string& key) {
    if (key == "module") {
      tensor.module = json.string();
    } else if (key == "part") {
      part = json.string();
    } else if (key == "shape") {
      json.array([&] { shape.push_back(json.number()); });
    } else if (key == "sites") {
      json.array([&] {
        const Pair site = read_pair(json, "payload", "offset");
        tensor.sites.push_back({site.first, site.second});
      });
    } else {
      json.skip();
    }
  });
  if (part != "a" && part != "b") {
    fail(LORA_CORE_UNSUPPORTED, "the template has parts called '" + part.substr(0, 32) + "', which this library does not link");
  }
  if (shape.size() != 2 || shape[0] == 0 || shape[1] == 0 || product(shape[0], shape[1]) > kLargestTensor) {
    damaged("the relocation table has a tensor that is no matrix");
  }
  tensor.is_a = part == "a";
  tensor.rows = shape[0], tensor.columns = shape[1];
  return tensor;
}

struct Table {
  uint64_t schema = 0;
  std::vector<Pair> segments;
  std::vector<SlotTensor> tensors;
};

Plan read_plan(Json& json) {
  Plan plan;
  json.object([&](const std::string& key) {
    if (key == "method") {
      plan.method = json.string();
    } else if (key == "tensors") {
      json.array([&] { plan.tensors.push_back(read_tensor(json)); });
    } else {
      json.skip();
    }
  });
  return plan;
}

Table read_table(Json& json, Template& found) {
  Table table;
  json.object([&](const std::string& key) {
    if (key == "schema_version") {
      table.schema = json.number();
    } else if (key == "layout") {
      found.in_one_program = json.string() == "multimethod";
    } else if (key == "foundation") {
      found.foundation = json.string();
    } else if (key == "mark") {
      found.mark = json.string();
    } else if (key == "tail_offset") {
      found.tail.offset = json.number();
    } else if (key == "tail_size") {
      found.tail.size = json.number();
    } else if (key == "tail") {
      read_tail(json, found.tail);
    } else if (key == "segments") {
      json.array([&] { table.segments.push_back(read_pair(json, "offset", "size")); });
    } else if (key == "delegates") {
      json.array([&] {
        const Pair each = read_pair(json, "position", "segment");
        found.delegates.push_back({each.first, each.second});
      });
    } else if (key == "tensors") {
      json.array([&] { table.tensors.push_back(read_tensor(json)); });
    } else if (key == "plans") {
      json.array([&] { found.plans.push_back(read_plan(json)); });
    } else if (key == "foundation_keys") {
      json.array([&] { found.foundation_keys.push_back(json.string()); });
    } else {
      json.skip();
    }
  });
  json.end();
  return table;
}

void check_tail(const Tail& tail, Bytes program) {
  program.part(tail.offset, tail.size);
  const bool power = tail.min_align != 0 && (tail.min_align & (tail.min_align - 1)) == 0 && tail.min_align <= 64;
  if (tail.vectors.size() != 3 || tail.file_identifier.size() != 4 || !power || tail.size == 0) {
    damaged("the relocation table's tail is not whole");
  }
  if (tail.header_length < 32 || tail.header_length > 4096) damaged("the relocation table's header is of a strange length");
  for (const uint64_t vector : tail.vectors) {
    if (vector > tail.size) damaged("the relocation table's tail has impossible offsets");
  }
  for (const auto& [key, offset] : tail.vtables) {
    if (offset > tail.size || key.empty()) damaged("the relocation table's tail has impossible offsets");
  }
}

void check_places(const Template& found) {
  std::vector<bool> delegated(found.segments.size());
  for (const Delegate& each : found.delegates) {
    if (each.segment >= found.segments.size() || each.position > found.tail.size || found.tail.size - each.position < 4) {
      damaged("the relocation table has a delegate outside of the program");
    }
    delegated[each.segment] = true;
  }
  for (const SlotTensor& tensor : found.plans[0].tensors) {
    for (const Site& site : tensor.sites) {
      if (site.payload >= found.segments.size() || !delegated[site.payload]) damaged("a key stands in no delegate's payload");
      found.segments[site.payload].part(site.offset, kKeyLength);
    }
  }
}

// The same of one program: sites are in the payloads of a plan's method.
void check_methods(const Template& found) {
  if (found.plans.empty()) damaged("the relocation table has no slot plan");
  for (const Plan& plan : found.plans) {
    const Method* method = found.parsed.method(plan.method);
    if (method == nullptr) damaged("the template has no method '" + plan.method.substr(0, 64) + "'");
    for (const SlotTensor& tensor : plan.tensors) {
      if (tensor.sites.empty()) damaged("a tensor of the relocation table has no place");
      for (const Site& site : tensor.sites) {
        if (site.payload >= method->payloads.size()) damaged("a key stands in no delegate's payload");
        found.parsed.payload(*method, site.payload).part(site.offset, kKeyLength);
      }
    }
  }
}

void find_slots(Plan& found) {
  std::map<std::string, int> parts;
  for (const SlotTensor& tensor : found.tensors) {
    found.size += tensor.size();
    Slot& slot = found.slots[tensor.module];
    const uint64_t rank = tensor.is_a ? tensor.rows : tensor.columns;
    if (slot.rank != 0 && slot.rank != rank) damaged("the parts of slot " + tensor.module + " are of different ranks");
    slot.rank = rank;
    (tensor.is_a ? slot.in_features : slot.out_features) = tensor.is_a ? tensor.columns : tensor.rows;
    parts[tensor.module] += tensor.is_a ? 1 : 16;
  }
  for (const auto& [module, count] : parts) {
    if (count != 17) damaged("slot " + module + " has not exactly two parts");
  }
}

}  // namespace

bool Plan::holds(const Adapter& adapter) const {
  for (const auto& [module, update] : adapter.updates) {
    const auto slot = slots.find(module);
    if (slot == slots.end() || update.a.rows > slot->second.rank || update.a.columns != slot->second.in_features ||
        update.b.rows != slot->second.out_features) {
      return false;
    }
  }
  return true;
}

bool Template::is_in_foundation(const std::string& key) const {
  return std::binary_search(foundation_keys.begin(), foundation_keys.end(), key);
}

Template read_template(Bytes program, Bytes table_text) {
  Template found;
  found.program = program;
  Json json(table_text.text());
  Table table = read_table(json, found);
  if (table.schema > kSchema) {
    fail(LORA_CORE_NEWER, "the relocation table has schema " + std::to_string(table.schema) + "; this library reads 2");
  }
  if (table.schema != kSchema) damaged("the relocation table has no schema that this library reads");
  if (found.foundation.size() != 64) damaged("the relocation table does not say for which foundation it is");
  if (!found.mark.empty() && found.mark.size() != 64) damaged("the relocation table's mark is none");
  if (found.in_one_program) {
    found.parsed = read_program(program);
    check_methods(found);
  } else {
    found.plans.assign(1, {});
    found.plans[0].tensors = std::move(table.tensors);
    check_tail(found.tail, program);
    for (const Pair& segment : table.segments) found.segments.push_back(program.part(segment.first, segment.second));
    check_places(found);
  }
  for (Plan& plan : found.plans) find_slots(plan);
  std::sort(found.foundation_keys.begin(), found.foundation_keys.end());
  found.digest = sha256(bytes_of(sha256(table_text) + "\n" + sha256(program) + "\n"));
  return found;
}

}  // namespace lora_core
