// What goes wrong inside the library; the C interface turns it into a status and a message.
#pragma once

#include <string>

#include "lora_core_link.h"

namespace lora_core {

struct Failure {
  lora_core_status status;
  std::string message;
};

[[noreturn]] inline void fail(lora_core_status status, std::string message) { throw Failure{status, std::move(message)}; }
[[noreturn]] inline void damaged(std::string message) { fail(LORA_CORE_DAMAGED, std::move(message)); }

}  // namespace lora_core
