// Links one adapter from the command line, and says how long it took, how long the processor worked, and the peak memory:
//   lora-core-link PROGRAM TABLE PACKAGE OUT.pte [OUT.ptd]
//   lora-core-link PROGRAM TABLE WEIGHTS,CONFIG NAME.pte [NAME.ptd]
// or adds it to the one program of all adapters, as the method NAME:
//   lora-core-link PROGRAM TABLE PACKAGE|WEIGHTS,CONFIG OUT.pte --to CURRENT.pte NAME
#include <chrono>
#include <cstdio>
#include <ctime>
#include <string>

#include "lora_core_link.h"

namespace {

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

// The most memory that this program has had in use, mapped files among it; 0 where /proc does not say.
long peak_kilobytes() {
  std::FILE* file = std::fopen("/proc/self/status", "r");
  if (file == nullptr) return 0;
  long found = 0;
  char line[256];
  while (found == 0 && std::fgets(line, sizeof line, file) != nullptr) std::sscanf(line, "VmHWM: %ld", &found);
  std::fclose(file);
  return found;
}

// The name of a file without its folder and its ending.
std::string stem(const std::string& path) {
  const size_t start = path.find_last_of("/\\") + 1;
  return path.substr(start, path.find('.', start) - start);
}

int refuse(const lora_core_error& error, lora_core_status status) {
  std::fprintf(stderr, "error %d: %s\n", static_cast<int>(status), error.message);
  return 10 + static_cast<int>(status);
}

}  // namespace

int main(int count, char** words) {
  const bool into_one = count == 8 && std::string(words[5]) == "--to";
  if (count < 5 || (count > 6 && !into_one)) {
    std::fprintf(stderr, "usage: lora-core-link PROGRAM TABLE PACKAGE|WEIGHTS,CONFIG OUT.pte [OUT.ptd | --to CURRENT.pte NAME]\n");
    return 2;
  }
  lora_core_template* opened = nullptr;
  lora_core_error error;
  const auto start = std::chrono::steady_clock::now();
  lora_core_status status = lora_core_template_open(words[1], words[2], &opened, &error);
  if (status != LORA_CORE_OK) return refuse(error, status);
  const double opening = milliseconds_since(start);
  const std::string adapter = words[3];
  const char* data = count == 6 ? words[5] : nullptr;
  const size_t comma = adapter.find(',');
  const auto linking = std::chrono::steady_clock::now();
  const std::clock_t worked = std::clock();
  if (comma == adapter.npos && into_one) {
    status = lora_core_add_package(opened, words[6], words[3], words[7], 1.0, words[4], &error);
  } else if (comma == adapter.npos) {
    status = lora_core_link_package(opened, words[3], nullptr, 1.0, words[4], data, &error);
  } else {
    const std::string weights = adapter.substr(0, comma), config = adapter.substr(comma + 1);
    status = into_one ? lora_core_add_peft(opened, words[6], weights.c_str(), config.c_str(), words[7], 1.0, words[4], &error)
                      : lora_core_link_peft(opened, weights.c_str(), config.c_str(), stem(words[4]).c_str(), 1.0, words[4], data, &error);
  }
  const double linked = milliseconds_since(linking);
  const double busy = 1e3 * static_cast<double>(std::clock() - worked) / CLOCKS_PER_SEC;
  lora_core_template_close(opened);
  if (status != LORA_CORE_OK) return refuse(error, status);
  std::printf("{\"open_ms\": %.3f, \"link_ms\": %.3f, \"link_cpu_ms\": %.3f, \"peak_kb\": %ld}\n", opening, linked,
              busy, peak_kilobytes());
  return 0;
}
