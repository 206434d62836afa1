// Names of adapters: lora_core/adapters/names.py, and what the backend keeps for itself (hooks.py).
#pragma once

#include <string>

namespace lora_core {

constexpr const char* kBase = "forward";  // the method of the base

// Without capitals: names that differ in them alone are one file on some systems.
std::string lower(std::string name);
// Throws unless a new adapter can have this name.
void check_name(const std::string& name);

}  // namespace lora_core
