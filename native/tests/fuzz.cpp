// Changes the library's inputs at random and links them: nothing but a clean refusal may come of it.
//
// As a program: fuzz PROGRAM TABLE PACKAGE WEIGHTS CONFIG ROUNDS SEED [CURRENT], built with sanitizers. It prints how many
// inputs were linked and how many were refused. CURRENT is the one program of all adapters, which another is added to. The
// same seed gives the same inputs.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "link.h"
#include "sha256.h"

using namespace lora_core;

namespace {

using Input = std::string;
using Chance = std::mt19937_64;

Input read_input(const char* path) {
  const MappedFile file(path);
  return Input(file.bytes().text());
}

uint64_t below(Chance& chance, uint64_t limit) { return limit == 0 ? 0 : chance() % limit; }

void change_number(Input& input, Chance& chance) {
  static const char* const odd[] = {"0", "1", "18446744073709551615", "4294967296", "-1", "1e9", "\"\"", "null", "[]"};
  const size_t start = input.find_first_of("0123456789", below(chance, input.size()));
  if (start == input.npos) return;
  const size_t end = std::min(input.find_first_not_of("0123456789", start), input.size());
  input.replace(start, end - start, odd[below(chance, sizeof odd / sizeof *odd)]);
}

void change_once(Input& input, Chance& chance) {
  if (input.empty()) return;
  const size_t at = below(chance, input.size());
  switch (below(chance, 7)) {
    case 0:
      input[at] = static_cast<char>(chance());
      return;
    case 1:
      input[at] = static_cast<char>(input[at] ^ (1 << below(chance, 8)));
      return;
    case 2:
      input.erase(at, 1 + below(chance, 64));
      return;
    case 3:
      input.insert(at, input.substr(below(chance, input.size()), 1 + below(chance, 64)));
      return;
    case 4:
      input.resize(at);
      return;
    default:
      change_number(input, chance);
  }
}

// Most changes go into the front: that is where structure is.
void change(Input& input, Chance& chance) {
  const uint64_t count = 1 + below(chance, 3);
  for (uint64_t index = 0; index < count; ++index) {
    if (below(chance, 4) == 0 || input.size() < 4096) {
      change_once(input, chance);
    } else {
      Input front = input.substr(0, 4096);
      change_once(front, chance);
      input.replace(0, 4096, front);
    }
  }
}

// Gives a changed package the digest and the header length that it would have, so that the rest is looked at.
void seal(Input& package, Chance& chance) {
  const size_t end = package.find("  ", 8) != package.npos ? package.find("}", package.rfind("]}", 8192)) : package.npos;
  if (below(chance, 3) != 0 && end != package.npos && end > 8 && end + 1 < package.size()) {
    size_t length = package.find_first_not_of(' ', end + 1);
    if (length == package.npos) length = package.size();
    uint8_t written[8];
    put_number(written, length - 8, 8);
    package.replace(0, 8, reinterpret_cast<const char*>(written), 8);
  }
  const size_t mark = package.find("\"digest\":\"");
  if (package.size() < 8 || mark == package.npos || mark + 74 > package.size()) return;
  const uint64_t length = number_at(reinterpret_cast<const uint8_t*>(package.data()), 8);
  if (length > package.size() - 8) return;
  try {
    const Bytes file = bytes_of(package);
    package.replace(mark + 10, 64, package_digest(file.part(0, 8 + length), file));
  } catch (const Failure&) {
  }
}

class Nowhere : public Sink {
 public:
  void write(Bytes bytes) override { hashed.update(bytes); }
  Sha256 hashed;
};

struct Inputs {
  Input program, table, package, weights, config, current;
};

bool links(const Inputs& inputs, bool as_package, bool embedded) {
  try {
    const Template found = read_template(bytes_of(inputs.program), bytes_of(inputs.table));
    Adapter adapter = as_package ? read_package(bytes_of(inputs.package)).adapter
                                 : read_peft(bytes_of(inputs.weights), bytes_of(inputs.config));
    adapter.template_digest.clear();  // changed templates are to be linked into
    Nowhere program, data;
    if (inputs.current.empty()) {
      link(found, "fuzzed", adapter, 1.0, program, embedded ? nullptr : &data);
    } else {
      link_into(found, read_program(bytes_of(inputs.current)), "fuzzed", adapter, 1.0, program);
    }
    return true;
  } catch (const Failure&) {
    return false;
  }
}

}  // namespace

int main(int count, char** words) {
  if (count != 8 && count != 9) return 2;
  const Inputs whole = {read_input(words[1]), read_input(words[2]), read_input(words[3]),
                        read_input(words[4]), read_input(words[5]), count == 9 ? read_input(words[8]) : ""};
  const uint64_t rounds = std::strtoull(words[6], nullptr, 10);
  Chance chance(std::strtoull(words[7], nullptr, 10));
  if (!links(whole, true, false) || !links(whole, true, true) || !links(whole, false, false)) {
    std::fprintf(stderr, "the unchanged inputs do not link\n");
    return 1;
  }
  uint64_t linked = 0;
  for (uint64_t round = 0; round < rounds; ++round) {
    Inputs changed = whole;
    Input* const each[] = {&changed.program, &changed.table,  &changed.package,
                           &changed.weights, &changed.config, &changed.current};
    const uint64_t which = below(chance, whole.current.empty() ? 5 : 6);
    change(*each[which], chance);
    if (which == 2) seal(changed.package, chance);
    if (changed.current.empty() != whole.current.empty()) continue;
    const bool as_package = which == 2 || ((which < 2 || which == 5) && below(chance, 2) == 0);
    linked += links(changed, as_package, below(chance, 2) == 0) ? 1 : 0;
  }
  std::printf("{\"linked\": %llu, \"refused\": %llu}\n", static_cast<unsigned long long>(linked),
              static_cast<unsigned long long>(rounds - linked));
  return 0;
}
