// Adapters as PEFT saves them (peft 0.21.2: tuners/lora/config.py, tuners/lora/layer.py).
#include <cmath>
#include <optional>

#include "adapter.h"
#include "json.h"

namespace lora_core {
namespace {

struct Scaling {
  std::optional<uint64_t> rank;
  std::optional<double> alpha;
  bool square_root = false;
  bool is_lora = false;
};

// What decides nothing here: training, provenance, and which modules were trained, which the weights say too.
constexpr const char* kHarmless[] = {
    "target_modules", "exclude_modules",     "layers_to_transform",     "layers_pattern", "fan_in_fan_out",
    "task_type",      "base_model_name_or_path", "ensure_weight_tying", "auto_mapping",   "revision",
    "inference_mode", "peft_version",        "lora_dropout",            "megatron_core",  "qalora_group_size",
    "loftq_config",   "eva_config",          "corda_config",            "lora_ga_config", "runtime_config",
    "merge_weights"};

bool harmless(const std::string& key) {
  for (const char* each : kHarmless) {
    if (key == each) return true;
  }
  return false;
}

// Reads a value; says whether it is one that switches nothing on.
bool unset(Json& json) {
  bool empty = true;
  switch (json.next()) {
    case 'n':
      return json.null();
    case 'f':
      return !json.boolean();
    case '{':
      json.object([&](const std::string&) { empty = false, json.skip(); });
      return empty;
    case '[':
      json.array([&] { empty = false, json.skip(); });
      return empty;
    case '"':
      return json.string().empty();
    default:
      json.skip();
      return false;
  }
}

void read_field(Json& json, const std::string& key, Scaling& scaling) {
  if (key == "peft_type") {
    scaling.is_lora = json.string() == "LORA";
  } else if (key == "r") {
    scaling.rank = json.number();
  } else if (key == "lora_alpha") {
    scaling.alpha = json.decimal();
  } else if (key == "use_rslora") {
    scaling.square_root = !json.null() && json.boolean();
  } else if (key == "init_lora_weights") {
    // How training began; but some of these change the base too, and those have names.
    if (json.next() != '"') return json.skip();
    const std::string how = json.string();
    if (how != "gaussian" && how != "orthogonal") {
      fail(LORA_CORE_UNSUPPORTED, "the adapter was initialized by '" + how + "'; pack it");
    }
  } else if (key == "bias") {
    if (json.string() != "none") fail(LORA_CORE_UNSUPPORTED, "the adapter trains biases, which is not supported");
  } else if (harmless(key)) {
    json.skip();
  } else if (!unset(json)) {
    fail(LORA_CORE_UNSUPPORTED, "the adapter uses '" + key.substr(0, 64) + "'; pack it with `lora-core pack`");
  }
}

Scaling read_config(Bytes config) {
  Scaling scaling;
  Json json(config.text());
  json.object([&](const std::string& key) { read_field(json, key, scaling); });
  json.end();
  if (!scaling.is_lora) fail(LORA_CORE_UNSUPPORTED, "the adapter is not of peft_type LORA");
  if (!scaling.rank || !scaling.alpha || *scaling.rank == 0 || *scaling.rank >> 31) damaged("the configuration has no r or no lora_alpha");
  return scaling;
}

bool take_ending(std::string& name, std::string_view ending) {
  if (name.size() < ending.size() || name.compare(name.size() - ending.size(), ending.size(), ending) != 0) return false;
  name.resize(name.size() - ending.size());
  return true;
}

// base_model.model.MODULE.lora_A.weight, or with the adapter's name left in: .lora_A.default.weight
std::optional<char> take_side(std::string& name) {
  constexpr std::string_view beginning = "base_model.model.";
  if (name.compare(0, beginning.size(), beginning) != 0 || !take_ending(name, ".weight")) return std::nullopt;
  std::string whole = name;
  for (const bool named : {false, true}) {
    name = whole;
    if (named) {
      const size_t dot = name.rfind('.');
      if (dot == name.npos || dot + 1 == name.size()) return std::nullopt;
      name.resize(dot);
    }
    for (const char side : {'A', 'B'}) {
      if (take_ending(name, std::string(".lora_") + side) && name.size() > beginning.size()) {
        name.erase(0, beginning.size());
        return side;
      }
    }
  }
  return std::nullopt;
}

}  // namespace

Adapter read_peft(Bytes weights, Bytes config) {
  const Scaling scaling = read_config(config);
  const auto rank = static_cast<double>(*scaling.rank);
  const Safetensors stored = read_safetensors(weights);
  Adapter adapter;
  for (const auto& [name, tensor] : stored.tensors) {
    std::string module = name;
    const std::optional<char> side = take_side(module);
    if (!side) fail(LORA_CORE_UNSUPPORTED, "nothing uses tensor '" + name.substr(0, 200) + "'");
    Update& update = adapter.updates[module];
    Matrix& matrix = *side == 'A' ? update.a : update.b;
    if (matrix.rows != 0) damaged("there are two tensors for LoRA " + std::string(1, *side) + " of " + module);
    matrix = matrix_of(name, tensor);
    update.scaling = *scaling.alpha / (scaling.square_root ? std::sqrt(rank) : rank);
  }
  check_ranks(adapter);
  for (const auto& [module, update] : adapter.updates) {
    if (update.a.rows != *scaling.rank) damaged(module + " is not of the rank that the configuration says");
  }
  return adapter;
}

}  // namespace lora_core
