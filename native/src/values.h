// The values that fill slots, and which of them have to be stored.
#pragma once

#include <array>
#include <map>
#include <set>

#include "adapter.h"
#include "template.h"

namespace lora_core {

// One tensor in memory at a time; lora_core/adapters/slots/kinds.py folds the same way.
class Values {
 public:
  Values(const Adapter& adapter, double strength);

  // The bytes of a slot's tensor, good until the next call.
  Bytes of(const SlotTensor& tensor, const Slot& slot);
  // The key of those bytes. Slots without effect of one shape have the same, which is computed once.
  std::string key_of(const SlotTensor& tensor, const Slot& slot);

 private:
  const Update* effective(const std::string& module);
  void fill_idle(const Slot& slot);
  void fold_b(const Update& update, uint64_t rank);

  const Adapter& adapter_;
  const double strength_;
  std::vector<float> values_;
  std::map<std::string, const Update*> effective_;
  std::map<std::array<uint64_t, 3>, std::string> idle_keys_;
};

}  // namespace lora_core
