#include "names.h"

#include "failure.h"

namespace lora_core {
namespace {

bool is_name(const std::string& name) {
  const auto letter = [](char each) { return (each >= 'a' && each <= 'z') || (each >= 'A' && each <= 'Z'); };
  if (name.empty() || name.size() > 64 || !letter(name[0])) return false;
  for (const char each : name) {
    if (!letter(each) && !(each >= '0' && each <= '9') && each != '_') return false;
  }
  return true;
}

}  // namespace

std::string lower(std::string name) {
  for (char& each : name) each = each >= 'A' && each <= 'Z' ? static_cast<char>(each - 'A' + 'a') : each;
  return name;
}

void check_name(const std::string& name) {
  if (!is_name(name)) fail(LORA_CORE_MISFIT, "'" + name.substr(0, 64) + "' cannot be an adapter's name");
  for (const char* beginning : {"get_", "use_", "enable_", "append_", "kv_"}) {
    if (lower(name).rfind(beginning, 0) == 0) {
      fail(LORA_CORE_MISFIT, "methods that begin with '" + std::string(beginning) + "' are a runner's metadata");
    }
  }
  if (lower(name) == kBase) fail(LORA_CORE_MISFIT, "'forward' is the method of the base");
}

}  // namespace lora_core
