// A device in small: one foundation, the base and adapters beside it, one more adapter linked from a package meanwhile.
//
//   runner FOUNDATION TOKENS COUNT NAME=PROGRAM[,DATA]... [--link NAME=TEMPLATE,TABLE,PACKAGE,PROGRAM,DATA]
//   runner FOUNDATION TOKENS COUNT NAME=PROGRAM@METHOD... [--add NAME=TEMPLATE,TABLE,PACKAGE,CURRENT,PROGRAM]
//
// The second form is for one program with a method for each adapter: --add writes another with one more to PROGRAM.
// TOKENS are the prompt's ids, separated by commas. Programs stay loaded; each continues the prompt with the COUNT most
// probable tokens. Writes a line of JSON for each: its name, its tokens, and the anonymous memory of the process.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/backend/options.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "lora_core_link.h"

using executorch::extension::Module;
using executorch::runtime::Error;

namespace {

[[noreturn]] void stop(const std::string& message) {
  std::fprintf(stderr, "error: %s\n", message.c_str());
  std::exit(1);
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

// With XNNPACK's weight cache, programs that read the same weights pack them once.
void share_packed_weights() {
  executorch::runtime::BackendOption option;
  std::snprintf(option.key, sizeof option.key, "weight_cache_enabled");
  option.value = true;
  if (executorch::runtime::set_option("XnnpackBackend", {&option, 1}) != Error::Ok) stop("there is no XNNPACK backend");
}

long anonymous_kilobytes() {
  std::ifstream file("/proc/self/smaps_rollup");
  for (std::string word; file >> word;) {
    long count = 0;
    if (word == "Anonymous:" && file >> count) return count;
  }
  return 0;
}

// A method of a program that is loaded.
struct Loaded {
  Module& module;
  std::string method;
};

// Feeds `tokens` at `position`; returns the most probable token after them.
int64_t step(const Loaded& loaded, std::vector<int64_t> tokens, int64_t position) {
  const auto length = static_cast<int32_t>(tokens.size());
  const auto input = executorch::extension::make_tensor_ptr({1, length}, std::move(tokens));
  const auto place = executorch::extension::make_tensor_ptr({1}, std::vector<int64_t>{position});
  const auto result = loaded.module.execute(loaded.method, {input, place});
  if (!result.ok()) stop("the program failed with error " + std::to_string(static_cast<int>(result.error())));
  const auto& logits = result->at(0).toTensor();
  const auto width = logits.size(logits.dim() - 1);
  const float* last = logits.const_data_ptr<float>() + (logits.numel() - width);
  return std::max_element(last, last + width) - last;
}

std::vector<int64_t> generate(const Loaded& loaded, const std::vector<int64_t>& prompt, int count) {
  std::vector<int64_t> found;
  auto position = static_cast<int64_t>(prompt.size());
  for (int64_t next = step(loaded, prompt, 0); static_cast<int>(found.size()) < count; ++position) {
    found.push_back(next);
    if (static_cast<int>(found.size()) < count) next = step(loaded, {next}, position);
  }
  return found;
}

// Returns NAME=PROGRAM,DATA of a new adapter, linked from its package; with `into_one` NAME=PROGRAM@NAME.
std::string link_adapter(const std::string& words, bool into_one) {
  const size_t equals = words.find('=');
  const std::vector<std::string> files = split(words.substr(equals + 1), ',');
  if (files.size() != 5) stop("--link takes NAME=TEMPLATE,TABLE,PACKAGE,PROGRAM,DATA, --add ...,CURRENT,PROGRAM");
  const std::string name = words.substr(0, equals);
  lora_core_error error;
  lora_core_template* opened = nullptr;
  if (lora_core_template_open(files[0].c_str(), files[1].c_str(), &opened, &error) != LORA_CORE_OK) stop(error.message);
  const char *package = files[2].c_str(), *third = files[3].c_str(), *last = files[4].c_str();
  const auto status = into_one ? lora_core_add_package(opened, third, package, name.c_str(), 1.0, last, &error)
                               : lora_core_link_package(opened, package, name.c_str(), 1.0, third, last, &error);
  lora_core_template_close(opened);
  if (status != LORA_CORE_OK) stop(error.message);
  return name + "=" + (into_one ? files[4] + "@" + name : files[3] + "," + files[4]);
}

// The program of NAME=PROGRAM[,DATA][@METHOD], loaded once however many of its methods are asked for.
Loaded load(const std::string& told, const std::string& foundation, std::map<std::string, std::unique_ptr<Module>>& modules) {
  const size_t equals = told.find('='), at = told.rfind('@');
  const bool several = at != told.npos && told.find('/', at) == told.npos;
  const std::string place = told.substr(equals + 1, several ? at - equals - 1 : told.npos);
  const std::vector<std::string> files = split(place, ',');
  std::vector<std::string> data = {foundation};
  data.insert(data.end(), files.begin() + 1, files.end());
  std::unique_ptr<Module>& module = modules[place];
  // Methods of one program have one key-value cache.
  if (!module) module = std::make_unique<Module>(files[0], data, Module::LoadMode::Mmap, nullptr, nullptr, nullptr, several);
  return {*module, several ? told.substr(at + 1) : "forward"};
}

}  // namespace

int main(int count, char** words) {
  if (count < 5) stop("usage: runner FOUNDATION TOKENS COUNT NAME=PROGRAM[,DATA]... [--link NAME=...]");
  share_packed_weights();
  const std::string foundation = words[1];
  std::vector<int64_t> prompt;
  for (const std::string& token : split(words[2], ',')) prompt.push_back(std::atoll(token.c_str()));
  std::map<std::string, std::unique_ptr<Module>> modules;
  for (int index = 4; index < count; ++index) {
    std::string told = words[index];
    const bool into_one = told == "--add";
    if ((into_one || told == "--link") && index + 1 < count) told = link_adapter(words[++index], into_one);
    const Loaded loaded = load(told, foundation, modules);
    std::string text;
    for (const int64_t token : generate(loaded, prompt, std::atoi(words[3]))) {
      text += (text.empty() ? "" : ", ") + std::to_string(token);
    }
    std::printf("{\"name\": \"%s\", \"tokens\": [%s], \"anonymous_kb\": %ld}\n", told.substr(0, told.find('=')).c_str(),
                text.c_str(), anonymous_kilobytes());
    std::fflush(stdout);
  }
  return 0;
}
